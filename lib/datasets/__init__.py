"""Data sets by name, the images of a run, and the cache of decoded ones; not what is done to an image after that.

A data set is a class that takes `(root, split, transform=None, download=False)` and yields
`(Pillow image, label)`, the label −1 where there is none. It may offer:

- `Settings`: a settings dataclass, which is then the last argument,
- `targets`: all labels, (N,) integers, which spares a reading of every image,
- `array`: all images, (N, H, W, C) 8-bit with C 1 or 3, where they have one size,
- `classes`: the names of the classes,
- `path(i)`: the file of image i,
- `check(numbers)`, which raises a UserError for those of these images that cannot be read, before anything is trained,
- `comes_with`: the package that has its images, where it reads no folder, so that naming one is a mistake,
- `describe()`: lines about the whole data set, for the start of a run,
- `keeps`: true where its last argument is `keep`, a folder for what it finds out, or none: nothing may be kept,
- `splits(root)`, a class or static method giving `Splits`; without it, `train` and `test` are assumed.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.registry import Registry, nearest
from lib.config.settings import Section, expanded, setting
from lib.datasets import disk_cache, image_decoder
from lib.datasets.folder_tree import counted
from lib.datasets.image_files import PictureFiles
from lib.errors import MissingData, UserError
from lib.machine import processes
from lib.networks import NetworkSettings
from lib.transforms import TransformSettings, needed_side

__all__ = ["DataSettings", "Pictures", "Splits", "get", "names", "register"]

_registry = Registry("data set")
register = _registry.register
get = _registry.get
names = _registry.names


@dataclass(frozen=True)
class Splits:
    """What `splits(root)` of a data set gives: its splits, and which are used unless the settings say otherwise."""

    sizes: Mapping[str, int]  # split → number of images; empty: they are not known before the files are read
    train: tuple[str, ...]  # what each head of PICA trains on, the last for all further heads; `a+b` is both
    test: tuple[str, ...]  # each is scored
    index: Any = None  # what was found on the way; unless it is None, the class takes it as its argument `index`


@dataclass(frozen=True)
class DataSettings(Section):
    """The settings of the group "data"; `--help all` explains each."""

    title = "data"
    dataset: str = setting("digits", "data set to cluster", component=_registry, lifetime="images")
    data_root: str = setting(
        "./data",
        "folder of the images, or of the data set's files",
        value="FOLDER",
        lifetime="images",
        convert=expanded,
    )
    train_splits: tuple[str, ...] | None = setting(
        None,
        "splits on which each head trains, such as train+test; none = as the data set proposes",
        value="SPLITS",
        lifetime="images",
    )
    test_splits: tuple[str, ...] | None = setting(
        None,
        "splits that are scored, such as train+test; none = as the data set proposes",
        value="SPLITS",
        lifetime="images",
    )
    download: bool = setting(False, "fetch the official files of the data set into --data-root", lifetime="call")
    on_bad_image: Literal["error", "skip"] = setting(
        "error", "what an unreadable image does; error = it ends the run; skip = it is left out and listed"
    )
    max_megapixels: float = setting(
        image_decoder.MEGAPIXELS,
        "largest image that is read; a larger one counts as unreadable",
        unit="million pixels",
        low=1e-6,
        high=1e6,
    )
    batch_size: int | None = setting(
        256,
        "images in a step; none = a power of two from 16 to 256, at most an eighth of the training images",
        unit="images",
        low=1,
        lifetime="run",
        adaptive=True,
    )

    @property
    def batch(self) -> int:
        """The batch size, once it is known."""
        assert self.batch_size is not None
        return self.batch_size


class Pictures:
    """The images of all splits that a run uses, in one numbering: `pictures[position]` is (Pillow image, label).

    Args:
        parts: split → its data set.
        train: the split that is trained on, for each head of PICA (`Splits`).
        scored: the splits that are scored.
        expected: whether the images are missing, so that only their number is known (`--dry-run`).
        unused: split → number of images, of the splits that the run does not use.
    """

    store: disk_cache.Store | None = None
    """The decoded images that are kept on disk, if any are."""

    decoded: dict[int, NDArray[np.uint8]]
    """Position → image, (H, W, C), of the images that were decoded before all are brought into memory."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        train: Sequence[str] = (),
        scored: Sequence[str] = (),
        expected: bool = False,
        unused: Mapping[str, int] | None = None,
    ) -> None:
        self._parts = dict(parts)
        self.decoded = {}
        self.train = tuple(train)
        self.scored = tuple(scored)
        self.expected = expected
        self._unused = [
            f"{size:,} images of the split {name} are not used; --train-splits or --test-splits can name it"
            for name, size in (unused or {}).items()
        ]
        self._names = list(parts)
        self._ends = np.cumsum([len(part) for part in parts.values()]).tolist()
        self.classes: Sequence[str] | None = next(
            (part.classes for part in parts.values() if getattr(part, "classes", None)), None
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        name, i = self.locate(position)
        image, label = self._parts[name][i]
        return image, int(label)

    def parts(self) -> Iterator[tuple[range, Any]]:
        """The positions of each split's images, and its data set."""
        for part, end in zip(self._parts.values(), self._ends, strict=True):
            yield range(end - len(part), end), part

    @property
    def decode_side(self) -> int | None:
        """px, shorter side down to which JPEG files are decoded at a reduced scale; None: at their own size."""
        return next((part.decode_side for part in self._parts.values() if isinstance(part, PictureFiles)), None)

    def decode_at(self, side: int) -> None:
        """Decode JPEG files at a scale at which their shorter side has so many px or more."""
        if side != self.decode_side:
            self.decoded.clear()
        for part in self._parts.values():
            if isinstance(part, PictureFiles):
                part.decode_side = side

    @property
    def in_files(self) -> bool:
        """Whether all are in files, each of which gives the same picture at every access, in any thread."""
        return all(isinstance(part, PictureFiles) for part in self._parts.values())

    def path(self, position: int) -> Path | None:
        """The file of an image, or None where the data set has no files."""
        name, i = self.locate(position)
        find = getattr(self._parts[name], "path", None)
        return None if find is None else Path(find(i))

    @cached_property
    def files(self) -> list[str] | None:
        """(N,) the files of all images, or None where some have no file."""
        found: list[str] = []
        for part in self._parts.values():
            if isinstance(part, PictureFiles):
                found += part.files
            elif hasattr(part, "path"):
                found += [str(part.path(i)) for i in range(len(part))]
            else:
                return None
        return found

    @cached_property
    def stamps(self) -> NDArray[np.int64]:
        """(N, 2) sizes in bytes and modification times in ns of the files as the run begins; 0 for a missing file."""
        return np.array([_stamp(file) for file in self.files or ()], dtype=np.int64).reshape(-1, 2)

    def check_clusters(self, clusters: int) -> None:
        """See that there are at least as many images as clusters.

        Raises:
            UserError: there are fewer.
        """
        if len(self) < clusters:
            count = counted(len(self), "picture", "pictures")
            verb = "does" if len(self) == 1 else "do"
            raise UserError(f"{count} {verb} not make {clusters} clusters; give a smaller --num-clusters")

    def describe(self) -> list[str]:
        """Lines about the data sets and the splits that are not used, for the start of a run."""
        lines = [line for part in self._parts.values() if hasattr(part, "describe") for line in part.describe()]
        return [*dict.fromkeys(lines), *self._unused]

    def locate(self, position: int) -> tuple[str, int]:
        """The split of an image, and its number within that split."""
        part = bisect.bisect_right(self._ends, position)
        return self._names[part], position - (self._ends[part - 1] if part else 0)

    def index(self, expression: str) -> NDArray[np.int64]:
        """(N,) positions of the images of `split` or `split+split+…`, in that order.

        Raises:
            UserError: a split that the run does not use.
        """
        spans = []
        for name in parts_of(expression):
            if name not in self._names:
                raise UserError(
                    f"no split {name!r} is in use: there is {', '.join(self._names)}{nearest(name, self._names)}"
                )
            part = self._names.index(name)
            spans.append(np.arange(self._ends[part] - len(self._parts[name]), self._ends[part], dtype=np.int64))
        return np.concatenate(spans)

    def labels(self) -> NDArray[np.int64]:
        """(N,) all labels, −1 where unknown; a data set without `targets` is read through for them, once."""
        return self._labels

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        found: list[NDArray[np.int64]] = []
        for part in self._parts.values():
            targets = getattr(part, "targets", None)
            if targets is None:
                targets = [_label(part, i) for i in range(len(part))]
            found.append(np.asarray(targets, dtype=np.int64).reshape(-1))
        return np.concatenate(found)


def _label(part: Any, i: int) -> int:
    try:
        return int(part[i][1])
    except Exception:  # the image is unreadable, and whoever needs it says so
        return -1


def _stamp(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:  # its reader will say so
        return 0, 0
    times = np.iinfo(np.int64)
    return found.st_size, min(max(found.st_mtime_ns, times.min), times.max)  # a file may be of any year


def parts_of(expression: str) -> list[str]:
    return [name.strip() for name in expression.split("+")]


def choose_splits(config: Config) -> tuple[tuple[str, ...], tuple[str, ...], Splits]:
    """(training splits per head, scored splits, what the data set declares; no sizes where it does not tell them).

    Raises:
        UserError: a split that the data set does not have, or that is named twice in one sum.
    """
    settings = config.of(DataSettings)
    declared = getattr(get(settings.dataset), "splits", None)
    known = declared(settings.data_root) if declared else Splits({}, ("train",), ("test",))
    _check_splits(known, settings.dataset)
    train = settings.train_splits or known.train
    test = settings.test_splits or known.test
    if config.of(Command).predict and settings.test_splits is None and known.sizes:
        test = tuple(dict.fromkeys([*known.test, "+".join(known.sizes)]))  # every image gets a cluster
    for expression in (*train, *test):
        used = parts_of(expression)
        for name in used:
            if known.sizes and name not in known.sizes:
                raise UserError(
                    f"the data set {settings.dataset} has no split {name!r}: it has "
                    f"{', '.join(known.sizes)}{nearest(name, known.sizes)}; see --train-splits and --test-splits"
                )
        if len(set(used)) < len(used):
            raise UserError(f"the split {expression!r} names a part twice")
    return train, test, known


def _check_splits(splits: Any, dataset: str) -> None:
    """Raises UserError where what a data set declares is no `Splits`, or has parts of other types."""
    title = f"`splits` of the data set {dataset}"
    if not isinstance(splits, Splits):
        raise UserError(
            f"{title} gives a {type(splits).__name__}; let it give lib.datasets.Splits(sizes={{'train': 100}}, "
            "train=('train',), test=('train',))"
        )
    if not isinstance(splits.sizes, Mapping) or not all(isinstance(size, int) for size in splits.sizes.values()):
        raise UserError(f"{title}: sizes is {splits.sizes!r}; give the number of images of each split, by its name")
    for name in ("train", "test"):
        value = getattr(splits, name)
        if not isinstance(value, tuple) or not value or not all(isinstance(entry, str) for entry in value):
            raise UserError(f"{title}: {name} is {value!r}; give a tuple of names of splits, such as ('train',)")


def open_pictures(config: Config) -> Pictures:
    """The pictures of all splits that the configuration uses.

    For a dry run, pictures that are not there are replaced by their declared number.

    Raises:
        UserError: from the data set, when its files are missing or of another layout.
    """
    settings = config.of(DataSettings)
    dry = config.of(Command).dry_run
    train, test, known = choose_splits(config)
    used = dict.fromkeys(name for expression in (*train, *test) for name in parts_of(expression))
    dataset = get(settings.dataset)
    package = getattr(dataset, "comes_with", None)
    if package is not None and Path(settings.data_root) != Path(DataSettings().data_root):
        raise UserError(
            f"--data-root {settings.data_root}: the data set {settings.dataset} comes with {package}, and reads no folder; "
            "for pictures of your own, --cfgs configs/base.yaml configs/image_folder.yaml"
        )
    cache = disk_cache.open_cache(config)
    keeps = {"keep": cache.root if cache.bound is not None else None} if getattr(dataset, "keeps", False) else {}
    indexed = {} if known.index is None else {"index": known.index}
    download = settings.download and not dry
    extra = config.extra(dataset)
    try:
        with processes.one_first():
            parts = {
                name: dataset(settings.data_root, name, None, download, *extra, **keeps, **indexed) for name in used
            }
    except MissingData:
        if not dry or not known.sizes:
            raise
        return Pictures({name: _Expected(known.sizes[name]) for name in used}, train, test, expected=True)
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"the data set {settings.dataset} in {settings.data_root}: its split {name} is empty")
        _check_array(part, settings.dataset, name)
        _check_targets(part, settings.dataset, name)
        if settings.on_bad_image == "error" and not hasattr(part, "path"):
            _check_first_image(part, settings.dataset, name)
        if isinstance(part, PictureFiles):
            part.max_megapixels = settings.max_megapixels
    unused = {name: size for name, size in known.sizes.items() if name not in used}
    pictures = Pictures(parts, train, test, unused=unused)
    side = _decode_side(config.of(TransformSettings))
    if side is not None:
        pictures.decode_at(side)
    pictures.store = _store(
        pictures, settings.data_root, config.of(TransformSettings), config.of(NetworkSettings), cache
    )
    missing = np.arange(len(pictures)) if pictures.store is None else pictures.store.missing
    for positions, part in pictures.parts():
        if settings.on_bad_image == "error" and hasattr(part, "check"):
            own = missing[(missing >= positions.start) & (missing < positions.stop)]
            part.check((own - positions.start).tolist())
    return pictures


def _check_array(part: Any, dataset: str, split: str) -> None:
    """Raises UserError where what a data set offers as `array` is not (N, H, W, 1 or 3) of bytes."""
    array = getattr(part, "array", None)
    if array is None:
        return
    title = f"`array` of the data set {dataset}, split {split},"
    if not isinstance(array, np.ndarray):
        raise UserError(f"{title} is {type(array).__name__}; give a NumPy array (N, H, W, C) of uint8")
    if array.dtype != np.uint8:
        raise UserError(
            f"{title} is {array.dtype}; give 8-bit values from 0 to 255, such as "
            "np.rint(array * 255).astype(np.uint8) for values from 0 to 1"
        )
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        hint = ", such as array[..., None] for grey images (N, H, W)" if array.ndim == 3 else ""
        raise UserError(f"{title} has the shape {array.shape}; give (N, H, W, C) with 1 or 3 channels{hint}")
    if len(array) != len(part):
        raise UserError(
            f"{title} has the shape {array.shape}, and `__len__` gives {len(part)} images; make the numbers equal"
        )


def _check_targets(part: Any, dataset: str, split: str) -> None:
    """Raises UserError where what a data set offers as `targets` is not an integer for each image."""
    targets = getattr(part, "targets", None)
    if targets is None:
        return
    title = f"`targets` of the data set {dataset}, split {split},"
    labels = np.asarray(targets)
    if labels.dtype.kind not in "iu":
        raise UserError(f"{title} is {labels.dtype}; give integers, -1 for an unknown class")
    if labels.size != len(part):
        raise UserError(f"{title} has {labels.size} labels, and `__len__` gives {len(part)}; make them equal")


def _check_first_image(part: Any, dataset: str, split: str) -> None:
    """Raises UserError where a data set without files does not give a Pillow image and a label."""
    title = f"`__getitem__(0)` of the data set {dataset}, split {split},"
    try:
        image, label = part[0]
        int(label)
    except OSError:  # a file of it is unreadable, and whoever reads it says so
        return
    except Exception as error:
        raise UserError(
            f"{title} fails: {type(error).__name__}: {error}; let it give a Pillow image and the number of its class"
        ) from error
    if not isinstance(image, Image.Image):
        raise UserError(
            f"{title} gives {type(image).__name__}, where a Pillow image is wanted; give Image.fromarray(array) of 8-bit values"
        )


def _decode_side(transforms: TransformSettings) -> int | None:
    """The side down to which JPEG files may be decoded, px, as far as it is known without the views of a run."""
    if transforms.tfm_decode_side == "full":
        return None
    if transforms.tfm_decode_side != "auto":
        return transforms.decode_side
    return needed_side(transforms, ()) if transforms.tfm_working_size is not None else None


def _store(
    pictures: Pictures, root: str, transforms: TransformSettings, network: NetworkSettings, cache: disk_cache.Cache
) -> disk_cache.Store | None:
    """Where decoded pictures are kept: only of files, and where a size is set to which they are brought."""
    side = transforms.tfm_working_size
    if cache.root is None or side is None or not pictures.in_files:
        return None
    base = str(Path(root).expanduser())
    names = [file.removeprefix(base) for file in pictures.files or ()]
    reduced = () if pictures.decode_side is None else (pictures.decode_side,)
    key = (os.path.realpath(base), side, *reduced)
    return disk_cache.Store(cache.root, key, network.net_cin, names, pictures.stamps, is_chosen=cache.is_chosen)


class _Expected:
    """Pictures of which the number alone is known."""

    def __init__(self, size: int) -> None:
        self.targets = np.full(size, -1)

    def __len__(self) -> int:
        return len(self.targets)


from lib.datasets import cifar, digits, image_folder, imagenet, stl10, tiny_imagenet  # noqa: E402, F401  (they register)
