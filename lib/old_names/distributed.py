"""`lib.machine.processes`, as it was called before."""

from lib.machine.processes import gather, gather_views, leads, rank, world

__all__ = ["gather", "gather_views", "leads", "rank", "world"]
