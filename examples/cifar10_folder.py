"""CIFAR-10 as files, FOLDER/train/CLASS/NAME.png and FOLDER/test/…, named as the official files name the pictures.

    python -m examples.cifar10_folder DATA FOLDER [LIST.gz]

DATA has the official files, or gets them. LIST.gz names the pictures to write, a line each; without it all are written.
"""

import gzip
import shutil
import sys
import zlib
from pathlib import Path

from PIL import Image

from lib.datasets.cifar import CIFAR10
from lib.errors import UserError, exit_status
from lib.progress import progress


def listed(path):
    try:
        return set(gzip.decompress(path.read_bytes()).decode().split())
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of pictures that gzip has packed: {error}") from error


@exit_status
def main(argv):
    if len(argv) not in (2, 3):
        raise UserError("two or three words are needed: python -m examples.cifar10_folder DATA FOLDER [LIST.gz]")
    data, folder, *chosen = map(Path, argv)
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or name another folder")
    wanted = listed(chosen[0]) if chosen else None
    found = {}
    for split in ("train", "test"):
        pictures = CIFAR10(str(data), split, download=True)
        for array, label, name in zip(pictures.array, pictures.targets, pictures.filenames, strict=True):
            found[f"{split}/{pictures.classes[label]}/{name}"] = array
    if wanted is not None and (strange := sorted(wanted - found.keys())):
        raise UserError(f"{chosen[0]}: CIFAR-10 has no {strange[0]}")
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    names = sorted(found if wanted is None else wanted)
    for name in progress(names, "writing pictures", len(names)):
        place = partial / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found[name]).save(place)
    partial.rename(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
