"""CIFAR-10 as files, FOLDER/train/CLASS/NAME.png and FOLDER/test/…, named as the official files name the pictures.

    python -m examples.cifar10_folder DATA FOLDER [LIST.gz]

DATA has the official files, or gets them. LIST.gz names the pictures to write, a line each; without it all are written.
"""

import gzip
import sys
import tempfile
import zlib
from pathlib import Path

from PIL import Image

from lib.datasets.cifar import CIFAR10
from lib.errors import MissingData, UserError, advice, exit_status
from lib.machine.progress import progress


def listed(path):
    try:
        names = set(gzip.decompress(path.read_bytes()).decode().split())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of pictures that gzip has packed: {error}") from error
    if not names:
        raise UserError(f"{path} names no pictures")
    return names


def official(data, split):
    try:
        return CIFAR10(data, split)
    except MissingData:
        return CIFAR10(data, split, download=True)


def write(pictures, folder):
    """Whole, or not at all."""
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as made:
            for name in progress(sorted(pictures), "writing pictures", len(pictures)):
                place = Path(made, folder.name, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pictures[name]).save(place)
            Path(made, folder.name).rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; {advice(error)}") from error


@exit_status
def main(argv):
    if len(argv) not in (2, 3):
        raise UserError("two or three words are needed: python -m examples.cifar10_folder DATA FOLDER [LIST.gz]")
    folder = Path(argv[1])
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already; remove it, or name another folder")
    wanted = listed(Path(argv[2])) if argv[2:] else None
    found = {}
    for split in ("train", "test"):
        pictures = official(argv[0], split)
        for array, label, name in zip(pictures.array, pictures.targets, pictures.filenames, strict=True):
            found[f"{split}/{pictures.classes[label]}/{name}"] = array
    if wanted is not None and (strange := sorted(wanted - found.keys())):
        raise UserError(f"{argv[2]}: CIFAR-10 has no {strange[0]}")
    write({name: array for name, array in found.items() if wanted is None or name in wanted}, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
