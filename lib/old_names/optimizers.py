"""`lib.training.optimizers`, as it was called before."""

from lib.training.optimizers import get, names, register

__all__ = ["get", "names", "register"]
