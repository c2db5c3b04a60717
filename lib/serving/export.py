"""What `--export` writes, by the file's ending."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lib.checkpoints import safetensors
from lib.checkpoints.checkpoint import check_writable
from lib.config.config import Config
from lib.errors import UserError
from lib.networks import backbone
from lib.networks.backbone import BackboneSettings
from lib.serving import onnx

ENDINGS = (".safetensors", ".onnx")


def check(path: str) -> None:
    """See that the file can be written.

    Raises:
        UserError: another ending, no such folder, one that cannot be written, or a package is missing.
    """
    if Path(path).suffix not in ENDINGS:
        known = " and ".join(ENDINGS)
        raise UserError(f"--export {path}: the file's ending says what is written, and {known} are what there is")
    if not Path(path).expanduser().absolute().parent.is_dir():
        raise UserError(f"--export {path}: there is no such folder; make it first")
    check_writable(Path(path).expanduser())
    if Path(path).suffix == ".onnx":
        onnx.check_installed(path)


def export(
    path: str, config: Config, state: Mapping[str, Any], statistics: Mapping[str, Tensor], encode: nn.Module
) -> None:
    """Write the state dict of a method behind `encode`, and the BatchNorm statistics for predictions; replaces a file that is there.

    Raises:
        UserError: the file cannot be written; what was there before is intact.
    """
    file = Path(path).expanduser()
    if file.suffix == ".onnx":
        onnx.export(file, config, state, statistics, encode)
    else:
        # Files of this call are nobody's business who gets the model.
        handed = config.replace(evaluate=None, predict=None, export=None, resume=None).as_dict()
        before = backbone.stored(encode, config.of(BackboneSettings)).get("backbone")
        safetensors.export(file, handed, state, statistics, before)
