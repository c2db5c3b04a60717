"""`lib.machine.processes`."""

from lib.machine.processes import *  # noqa: F403
