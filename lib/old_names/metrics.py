"""Scores of a clustering, from arrays of integers, and PICA's partition uncertainty index.

`lib.scoring.metrics` has the code; both names work.
"""

from lib.scoring.metrics import balance, contingency, matching, partition_uncertainty, scores, top_k, uncertainty

__all__ = ["balance", "contingency", "matching", "partition_uncertainty", "scores", "top_k", "uncertainty"]
