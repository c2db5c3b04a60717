"""Build the API pages from the docstrings: make api, or python docs/api.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

MODULES = (
    "main",
    "pica",
    "pica.losses",
    "imc_swav",
    "imc_swav.losses",
    "lib.serving.model",
    "lib.metrics",
    "lib.errors",
    "lib.datasets",
    "lib.networks",
    "lib.networks.headless",
    "lib.networks.backbone",
    "lib.contracts",
    "lib.methods.method",
    "lib.config.settings",
    "lib.training.optimizers",
    "lib.training.schedules",
)
"""The public modules. `__all__` of each has its public names; without it, all that it defines without an underscore."""


def build(folder: Path) -> None:
    """Write a page for each of `MODULES`, and an index, into the folder."""
    import pdoc

    pdoc.render.configure(docformat="google", show_source=True)
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}/index.html")
