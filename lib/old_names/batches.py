"""`lib.methods.batches`, as it was called before."""

from lib.methods.batches import ViewBatch, stream

__all__ = ["ViewBatch", "stream"]
