"""Commands that a person can paste into the shell that the run was started from."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from lib.config.config import Config
from lib.config.yaml_files import PROGRAM

INSTALLED = "deep-image-clustering"  # the command that `pip install` gives


def command(*words: object) -> str:
    """A call of this program, as it was called itself."""
    return shlex.join([*_program(), *map(str, words)])


def module(name: str, *words: object) -> str:
    """A call of a module of Python."""
    return shlex.join([_python(), "-m", name, *map(str, words)])


def resume(folder: Path, config: Config, *more: object) -> str:
    """Continue the run of a session, where and how it was run: its config.yaml has what a checkpoint has not."""
    words = ["--cfgs", folder / "config.yaml", "--resume", folder / "checkpoint" / "latest.ckpt"]
    return command(*words, *(["--restart", "false"] if config.as_dict()["restart"] else []), *more)


def resume_family(folder: Path) -> str:
    """Continue all runs of a session that has several."""
    return command("--cfgs", folder / "config.yaml", "--session", folder.name, "--resume", "auto")


def predict(checkpoint: Path, images: str, config: Config, *more: object) -> str:
    """Cluster the images of a folder by a checkpoint."""
    return command("--predict", checkpoint, "--data-root", images, *_surroundings(config), *more)


def again(folder: Path, config: Config, *words: object) -> str:
    """A new run with the settings of a session, and some others."""
    anew = ["--resume", "none", "--restart", "false"] if config.as_dict()["restart"] else []
    return command("--cfgs", folder / "config.yaml", *anew, *_root(folder.parent), *words)


def _root(sessions: Path) -> list[str]:
    """What makes a new session go to a folder."""
    return [] if sessions.resolve() == Path("sessions").resolve() else ["--session-root", str(sessions)]


def _surroundings(config: Config) -> list[str]:
    """What a checkpoint does not bring along: modules, GPUs, and where sessions go."""
    values = config.as_dict()
    root = _root(Path(values["session_root"]))
    imports = ["--imports", *values["imports"]] if values["imports"] else []
    return [*imports, *root, *(["--gpus", values["gpus"]] if values["gpus"] else [])]


def _program() -> list[str]:
    called = Path(sys.argv[0])
    if called.name == INSTALLED and shutil.which(INSTALLED):
        return [INSTALLED]
    file = os.path.relpath(PROGRAM / "main.py")
    return [_python(), file if not file.startswith("..") else str(PROGRAM / "main.py")]


def _python() -> str:
    """The name by which a shell finds this very interpreter; its path where there is none."""
    for name in ("python", "python3"):
        path = shutil.which(name)
        if path and os.path.realpath(path) == os.path.realpath(sys.executable) and _prefix(path) == sys.prefix:
            return name
    return sys.executable


def _prefix(interpreter: str) -> str:
    """The environment of an interpreter: a virtual one's binary is a link to that of another."""
    folder = Path(interpreter).absolute().parent.parent
    return str(folder) if (folder / "pyvenv.cfg").exists() else sys.base_prefix
