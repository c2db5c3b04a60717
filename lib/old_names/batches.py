"""`lib.methods.batches`."""

from lib.methods.batches import *  # noqa: F403
