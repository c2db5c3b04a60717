"""`lib.machine.devices`, and what was in the same file."""

from lib.machine.devices import *  # noqa: F403
from lib.machine.interrupts import *  # noqa: F403
from lib.machine.precision import *  # noqa: F403
from lib.machine.random_seeds import *  # noqa: F403
