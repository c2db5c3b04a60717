"""The pictures that a report shows: which they are, how they look, and where they lie among each other."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lib.contracts import Task
from lib.datasets import Pictures
from lib.errors import UserError
from lib.machine import processes
from lib.machine.progress import progress
from lib.networks import batchnorm
from lib.scoring import inference
from lib.scoring.evaluation import EvaluationSettings, Outcome
from lib.scoring.inference import Predictions
from lib.scoring.label_free import directions, spread
from lib.session import Session
from lib.transforms import TransformSettings, plain_recipe
from lib.transforms.image_reader import Reader

FILE = "shown.npz"
MOST_CONFIDENT = 18
LEAST_CERTAIN = 12  # pictures of each cluster, where the sample has room
MOST = 5000  # images of a report
LARGEST = 64  # px, side of a thumbnail
BYTES = 3_000_000  # of all thumbnails; a page holds a third more, in base64
_TRIES = ((1.0, 82), (0.75, 80), (0.5, 75), (0.5, 50), (0.375, 40), (0.25, 30))  # share of the side, quality


def choose(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Rows of at most `count` predictions: the extremes of each cluster, the rest evenly spread over all."""
    rows = np.arange(len(predictions.index))
    if len(rows) <= count:
        return rows
    confidence = predictions.probability.max(axis=1)
    cluster = predictions.cluster
    k = predictions.probability.shape[1]
    share = min(1.0, count / 2 / (k * (MOST_CONFIDENT + LEAST_CERTAIN)))
    best = int(share * MOST_CONFIDENT)
    worst = int(share * LEAST_CERTAIN)
    chosen: list[NDArray[np.int64]] = []
    for number in range(k):
        own = np.flatnonzero(cluster == number)
        own = own[np.argsort(-confidence[own], kind="stable")]
        chosen += [own[:best], own[len(own) - min(worst, len(own)) :]]
    extremes = np.unique(np.concatenate(chosen))
    return np.union1d(extremes, spread(np.setdiff1d(rows, extremes), count - len(extremes)))


def keep(session: Session, task: Task, outcome: Outcome) -> None:
    """Leave shown.npz: for the pictures that are shown, row among the predictions, feature, place on the map, look."""
    settings = task.config.of(EvaluationSettings)
    if not settings.eval_sample or not processes.largest(int(session.path is not None)):
        return
    found = outcome.predictions
    rows = choose(found, min(settings.eval_sample, MOST))
    plain = plain_recipe(task.config.of(TransformSettings))
    with batchnorm.restored(task.method):
        for name, buffer in task.method.named_buffers():
            buffer.copy_(outcome.statistics[name])
        (embedded,) = inference.embed(task, found.index[rows], (plain,), settings.eval_batch_size)
    if session.path is None:
        return
    rows = np.searchsorted(found.index, embedded.index)
    images, pixelated = thumbnails(task.pictures, embedded.index)
    sprite, cell = sprite_of(images)
    content = {
        "row": rows, "feature": directions(embedded.feature).astype(np.float16), "place": places(embedded.feature),
        "sprite": np.frombuffer(sprite, dtype=np.uint8), "cell": cell, "pixelated": pixelated,
    }  # fmt: skip
    session.write_arrays(FILE, content)


def columns(count: int) -> int:
    """Of the sheet on which `count` thumbnails lie."""
    return max(1, int(np.ceil(np.sqrt(count))))


def thumbnails(pictures: Pictures, index: NDArray[np.int64]) -> tuple[list[Image.Image], bool]:
    """The middle squares of pictures, all of one side, in RGB; and whether they are so small that pixels show."""
    reader = Reader(pictures, 3, None)

    def square(position: int) -> Image.Image:
        image = reader.decode(position)
        return ImageOps.fit(image, (min(LARGEST, *image.size),) * 2)

    made = progress(reader.beside(index.tolist(), square), "making thumbnails", len(index))
    # What cannot be read is gone since it was predicted.
    found = [None if isinstance(image, UserError) else Image.fromarray(image) for image in made]
    side = max((image.width for image in found if image), default=16)
    pixelated = side <= 32
    side = min(LARGEST, -(-side // 16) * 16)  # whole blocks of JPEG, so that none bleeds into another
    filter_ = Image.Resampling.NEAREST if pixelated else Image.Resampling.BILINEAR
    blank = Image.new("RGB", (side, side))
    return [image.resize((side, side), filter_) if image else blank for image in found], pixelated


def sprite_of(images: Sequence[Image.Image]) -> tuple[bytes, int]:
    """One JPEG of all thumbnails, row by row, within `BYTES` if that can be; and the side of each, px."""
    for share, quality in _TRIES:
        side = max(16, int(images[0].width * share) // 16 * 16)
        wide = columns(len(images))
        sheet = Image.new("RGB", (wide * side, -(-len(images) // wide) * side))
        for number, image in enumerate(images):
            sheet.paste(image.resize((side, side)), (number % wide * side, number // wide * side))
        content = io.BytesIO()
        sheet.save(content, "JPEG", quality=quality, subsampling=0)
        if content.tell() <= BYTES:
            break
    return content.getvalue(), side


def places(feature: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 2) in [0, 1]: neighbours in direction lie near each other (t-SNE, van der Maaten and Hinton, 2008)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(feature)
    units = directions(feature)
    found = np.zeros((count, 2), dtype=np.float32)
    found[:, 0] = np.arange(count)
    if count >= 3 and np.ptp(units, axis=0).max() > 1e-5:  # less is rounding
        few = PCA(min(50, count, units.shape[1]), random_state=0).fit_transform(units)
        if count > 30 and few.shape[1] > 2:
            found = TSNE(perplexity=min(30, count / 4), init="pca", max_iter=500, random_state=0).fit_transform(few)
        else:
            found = np.pad(few[:, :2], ((0, 0), (0, 2 - min(2, few.shape[1]))))
    low = found.min(axis=0)
    high = found.max(axis=0)
    inside: NDArray[np.float32] = ((found - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
    return inside
