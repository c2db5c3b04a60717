"""`lib.transforms.channel_statistics`, as it was called before."""

from lib.transforms.channel_statistics import measured

__all__ = ["measured"]
