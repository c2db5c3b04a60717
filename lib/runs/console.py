"""The installed command `deep-image-clustering`, which is `python main.py`."""

from __future__ import annotations

import runpy


def command() -> None:
    """Run main.py as a program: its first lines heed signals while its imports take seconds."""
    runpy.run_module("main", run_name="__main__", alter_sys=True)
