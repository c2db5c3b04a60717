"""`lib.methods.method`."""

from lib.contracts import Batch, Prepared, Request, Source, Views  # noqa: F401
from lib.methods.method import *  # noqa: F403
