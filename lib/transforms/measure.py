"""`lib.transforms.channel_statistics`."""

from lib.transforms.channel_statistics import *  # noqa: F403
