"""`lib.contracts`, `lib.methods.method`, as it was called before."""

from lib.contracts import Batch, Prepared, Request, Source, Views
from lib.methods.method import (
    Entry,
    Method,
    MethodSettings,
    Split,
    Task,
    assemble,
    get,
    names,
    number_if_given,
    number_of_clusters,
    register,
)

__all__ = [
    "Batch",
    "Entry",
    "Method",
    "MethodSettings",
    "Prepared",
    "Request",
    "Source",
    "Split",
    "Task",
    "Views",
    "assemble",
    "get",
    "names",
    "number_if_given",
    "number_of_clusters",
    "register",
]
