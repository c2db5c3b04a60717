"""`lib.scoring.metrics`."""

from lib.scoring.metrics import *  # noqa: F403
