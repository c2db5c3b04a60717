"""`lib.machine.progress`."""

from lib.machine.progress import *  # noqa: F403
