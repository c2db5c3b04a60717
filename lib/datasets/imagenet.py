"""ImageNet (Russakovsky et al., 2015) and its subsets, out of an ordinary training folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lib.config.regular_files import check_regular
from lib.config.settings import Section, expanded, setting
from lib.datasets import Splits, register
from lib.datasets.image_files import Index, PictureFiles
from lib.errors import MissingData, UserError

# Huang et al., 2020, section 4, after Chang et al., Deep Adaptive Image Clustering, ICCV 2017.
IMAGENET10 = """
n02056570 king penguin
n02085936 Maltese dog
n02128757 snow leopard
n02690373 airliner
n02692877 airship
n03095699 container ship
n04254680 soccer ball
n04285008 sports car
n04467665 trailer truck
n07747607 orange
"""
IMAGENET_DOGS = """
n02085936 Maltese dog
n02086646 Blenheim spaniel
n02088238 basset
n02091467 Norwegian elkhound
n02097130 giant schnauzer
n02099601 golden retriever
n02101388 Brittany spaniel
n02101556 clumber
n02102177 Welsh springer spaniel
n02105056 groenendael
n02105412 kelpie
n02105855 Shetland sheepdog
n02107142 Doberman
n02110958 pug
n02112137 chow
"""
WNID = re.compile(r"n\d{8}")


class Subset(PictureFiles):
    """The training pictures of some classes, one folder of `root` each; nothing is copied.

    Raises:
        UserError: class folders are missing, empty or elsewhere, or a list of classes is none.
    """

    keeps: ClassVar[bool] = True  # the list of its files
    listed: ClassVar[str]  # its classes, a line each
    size: ClassVar[int]

    @classmethod
    def splits(cls, root: str) -> Splits:
        return Splits({"train": cls.size}, train=("train",), test=("train",))

    def __init__(
        self,
        root: str,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        settings: Any = None,
        *,
        keep: Path | None = None,
    ) -> None:
        if split != "train":
            raise UserError(f"ImageNet is read from a training folder, which has no split {split!r}: it has train")
        if download:
            raise UserError("ImageNet is given to registered users alone, by image-net.org; leave --download out")
        base = Path(root).expanduser()
        wanted = self._chosen(base, settings)
        _check(base, root, list(wanted))
        names = Index(base, keep).files(list(wanted))
        empty = next((wnid for wnid, files in zip(wanted, names, strict=True) if not files), None)
        if empty is not None:
            raise UserError(f"the class folder {base / empty} holds no picture; unpack {empty}.tar into it")
        self.classes = tuple(wanted.values())
        targets = np.repeat(np.arange(len(names)), [len(files) for files in names])
        folders = [str(base / wnid) for wnid in wanted]
        inside = [f"{folder}/{file}" for folder, files in zip(folders, names, strict=True) for file in files]
        super().__init__(inside, targets.tolist(), transform)

    def _chosen(self, base: Path, settings: Any) -> dict[str, str]:
        """WordNet number → name of the classes wanted."""
        return _parse(self.listed.splitlines())


@register("imagenet10")
class ImageNet10(Subset):
    """ImageNet-10: 13,000 training images of 10 classes of ImageNet."""

    listed = IMAGENET10
    size = 13_000


@register("imagenet_dogs")
class ImageNetDogs(Subset):
    """ImageNet-Dogs: 19,500 training images of 15 breeds of dog."""

    listed = IMAGENET_DOGS
    size = 19_500


@register("imagenet")
class ImageNet(Subset):
    """ImageNet: the training images of all classes, or of the classes in the file --class-list."""

    @dataclass(frozen=True)
    class Settings(Section):
        title = "data set imagenet"
        class_list: str | None = setting(
            None,
            "file of classes, one a line, such as n01440764 with or without a name after it; none = every class folder",
            value="FILE",
            convert=expanded,
        )

    @classmethod
    def splits(cls, root: str) -> Splits:
        return Splits({}, train=("train",), test=("train",))

    def _chosen(self, base: Path, settings: Any) -> dict[str, str]:
        if settings is not None and settings.class_list is not None:
            return _read_list(settings.class_list)
        inside = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
        return {name: name for name in inside if WNID.fullmatch(name)}


def _parse(lines: Sequence[str]) -> dict[str, str]:
    """WordNet number → name, in the order of the lines; `#` starts a comment."""
    found: dict[str, str] = {}
    for line in lines:
        wnid, name = (*line.partition("#")[0].split(maxsplit=1), "", "")[:2]
        if wnid and (not WNID.fullmatch(wnid) or wnid in found):
            raise ValueError(f"{line.strip()[:40]!r} {'comes twice' if wnid in found else 'names no class'}")
        if wnid:
            found[wnid] = name.strip() or wnid
    return found


def _read_list(path: str) -> dict[str, str]:
    try:
        check_regular(path, pipes=True)
        found = _parse(Path(path).read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise UserError(f"cannot read {path}, the --class-list: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path}, the --class-list: {error}; a line is such as n01440764 tench") from error
    if not found:
        raise UserError(f"{path}, the --class-list, is empty; a line is such as n01440764 tench")
    return found


def _check(base: Path, root: str, wanted: list[str]) -> None:
    missing = [wnid for wnid in wanted if not (base / wnid).is_dir()]
    if wanted and not missing:
        return
    if wanted and len(missing) < len(wanted):
        packed = " (it is there as a .tar: unpack it)" if (base / f"{missing[0]}.tar").is_file() else ""
        raise UserError(f"{root} lacks {len(missing)} of {len(wanted)} class folders, such as {missing[0]}{packed}")
    folder = "its training folder holds one folder per class, such as n01440764"
    for inside in (base / "train", *(base.glob("*/train"))):
        if any(WNID.fullmatch(path.name) for path in inside.glob("n????????")):
            raise UserError(f"no class folder in {root}: --data-root is too high; give {inside}")
    if WNID.fullmatch(base.resolve().name):
        raise UserError(f"no class folder in {root}: --data-root is one level too low; give {base.resolve().parent}")
    if any(base.glob("n????????.tar")):
        raise UserError(f"{root} holds archives of classes that were not unpacked; {folder}")
    if any(WNID.fullmatch(path.name) for path in base.glob("n????????")):
        raise UserError(f"{root} has none of the {len(wanted)} class folders wanted, such as {wanted[0]}")
    raise MissingData(f"no class folder of ImageNet in {root}; {folder}, and --data-root is that folder")
