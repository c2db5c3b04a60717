"""`lib.config.settings`, as it was called before."""

from lib.config.settings import Section, setting

__all__ = ["Section", "setting"]
