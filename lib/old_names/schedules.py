"""`lib.training.schedules`, as it was called before."""

from lib.training.schedules import get, names, register

__all__ = ["get", "names", "register"]
