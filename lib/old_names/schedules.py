"""`lib.training.schedules`."""

from lib.training.schedules import *  # noqa: F403
