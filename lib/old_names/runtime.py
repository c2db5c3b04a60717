"""`lib.machine.devices`."""

from lib.machine.devices import *  # noqa: F403
