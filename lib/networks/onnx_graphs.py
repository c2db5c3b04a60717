"""A network as an ONNX graph, and ONNX Runtime, which computes it."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EXPORT_NEEDS = ("onnx", "onnxscript")
RUN_NEEDS = ("onnxruntime",)


class NotExportableError(Exception):
    """The exporter cannot express a network; the text says why."""


def missing_packages(*names: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def exported(module: nn.Module, example: Tensor, inputs: list[str], outputs: list[str]) -> Any:
    """The program of a module that takes one tensor, (N, …) for any N.

    Args:
        module: in evaluation mode, on the CPU.
        example: (2, …); of one image the exporter would take N for a constant.
        inputs, outputs: their names in the graph.

    Raises:
        NotExportableError: the exporter cannot express it.
    """
    try:
        with _silence():
            program = torch.onnx.export(
                module, (example,), dynamo=True, verbose=False, input_names=inputs, output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise NotExportableError(str(error.__cause__ or error).strip().partition("\n")[0]) from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # names of source files
    return program


def serialized(program: Any) -> bytes:
    """The content of an .onnx file."""
    content: bytes = program.model_proto.SerializeToString(deterministic=True)
    return content


class Graph:
    """A graph of one input and one output, (N, …) float32 → (N, D) float32, computed by ONNX Runtime on the CPU.

    Args:
        content: of an .onnx file.
        threads: that compute.

    Raises:
        Exception: of any kind, where ONNX Runtime does not take the graph.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that waits leaves its core to those that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> Tensor:
        rows = self._session.run(None, {self._input: np.ascontiguousarray(images.numpy())})[0]
        return torch.from_numpy(rows)


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter logs and prints whole programs where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
