"""`lib.scoring.metrics`, as it was called before."""

from lib.scoring.metrics import balance, contingency, matching, partition_uncertainty, scores, top_k, uncertainty

__all__ = ["balance", "contingency", "matching", "partition_uncertainty", "scores", "top_k", "uncertainty"]
