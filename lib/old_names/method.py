"""`lib.contracts`, `lib.methods.method`, as it was called before."""

from lib.contracts import Batch, Prepared, Request, Source, Split, Task, Views
from lib.methods.building import assemble
from lib.methods.method import (
    Entry,
    MethodSettings,
    get,
    names,
    number_if_given,
    number_of_clusters,
    register,
)
from lib.methods.method import ViewMethod as Method

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
