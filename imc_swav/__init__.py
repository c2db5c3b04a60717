"""IMC-SwAV: Ntelemis, Jin, Thomas, Information Maximization Clustering via Multi-View Self-Labelling, 2021.

`sinkhorn`, `swapped_prediction_loss` and `mutual_information_loss` are for your own training loop. `IMCSwAV` is the
network with its heads, as `main.py` trains it.
"""

from imc_swav import authors  # noqa: F401  (registers itself)
from imc_swav.losses import mutual_information_loss, sinkhorn, swapped_prediction_loss
from imc_swav.method import IMCSwAV, IMCSwAVSettings

__all__ = [
    "IMCSwAV",
    "IMCSwAVSettings",
    "mutual_information_loss",
    "sinkhorn",
    "swapped_prediction_loss",
]
