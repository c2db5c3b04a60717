"""Whether a run that goes on still has the pictures that it began with."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets import Pictures
from lib.errors import UserError

SAMPLE = 64  # pictures whose content is looked at where there are no files


@dataclass(frozen=True)
class Fingerprint:
    """What a run's pictures were: which, and, of those that are files, when each was last written."""

    pictures: str  # SHA-256 of their number, labels and names, or of a sample of their content
    stamps: Tensor  # (N,) int64, of size and modification time; empty where there are no files
    trained: str | None  # SHA-256 of the positions that each head trains on; none: of an older checkpoint

    def changed(self, earlier: Fingerprint, same_splits: bool) -> NDArray[np.int64]:
        """Positions of the pictures that were written since.

        Args:
            earlier: of the pictures as the run began.
            same_splits: whether the settings name the same splits to train on.

        Raises:
            UserError: they are other pictures, or others of them are trained on.
        """
        are_others = self.pictures != earlier.pictures or len(self.stamps) != len(earlier.stamps)
        trains_on_others = not same_splits if earlier.trained is None else self.trained != earlier.trained
        # Where images were added or removed, the positions differ too.
        if trains_on_others and not (are_others and same_splits):
            raise UserError(
                "the training images are not those that the run began with; give --train-splits and --dataset as "
                "before, or take the weights into a new session with --restart"
            )
        if are_others:
            raise UserError(
                "the pictures are not those that the run began with: some were added, removed, renamed or relabelled; "
                "bring them back, or take the weights into a new session with --restart"
            )
        return np.flatnonzero((self.stamps != earlier.stamps).numpy()).astype(np.int64)


def fingerprint(pictures: Pictures, root: str) -> Fingerprint:
    """Of the pictures in the folder `root`, which may lie elsewhere the next time."""
    whole = hashlib.sha256(pictures.labels().tobytes())
    stamps = np.zeros(0, dtype=np.int64)
    if pictures.files is not None:
        base = str(Path(root).expanduser())
        whole.update(os.fsencode("\n".join(file.removeprefix(base) for file in pictures.files)))
        # Size and time in one number.
        stamps = (pictures.stamps[:, 1] * 31 + pictures.stamps[:, 0]) % 2**62
    else:
        for position in range(0, len(pictures), max(1, len(pictures) // SAMPLE)):
            with suppress(Exception):  # the image is unreadable, and whoever needs it says so
                whole.update(pictures[position][0].tobytes())
    return Fingerprint(whole.hexdigest(), torch.from_numpy(stamps), _trained(pictures))


def _trained(pictures: Pictures) -> str:
    """SHA-256 of the positions that each head trains on; the last are those of all further heads."""
    positions = [pictures.index(splits).tobytes() for splits in pictures.train]
    while len(positions) > 1 and positions[-1] == positions[-2]:
        positions.pop()
    return hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in positions)).hexdigest()
