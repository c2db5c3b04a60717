"""`lib.training.optimizers`."""

from lib.training.optimizers import *  # noqa: F403
