"""`lib.machine.progress`, as it was called before."""

from lib.machine.progress import progress

__all__ = ["progress"]
