"""PICA: Huang, Gong, Zhu, Deep Semantic Clustering by Partition Confidence Maximisation, CVPR 2020.

`PUILoss` is the objective, for your own training loop. `PICA` is the network with its heads, as `main.py` trains it.
"""

from pica import authors  # noqa: F401  (registers itself)
from pica.losses import PUILoss
from pica.method import PICA, PICASettings

__all__ = ["PICA", "PICASettings", "PUILoss"]
