"""What computes a frozen network: PyTorch as it is, folded or compiled, or ONNX Runtime. Its weights stay as they are.

Each engine but `eager` is compared with it on noise before it is used. It takes images in groups of `GROUP`, however
many it is given.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.datasets.disk_cache import Cache, KeptNetwork
from lib.errors import UserError
from lib.machine import devices, precision
from lib.machine.devices import Placement
from lib.networks import onnx_graphs

Name = Literal["auto", "eager", "folded", "onnxruntime", "compiled"]

VERSION = 1  # of how a graph is exported; another one exports it again
GROUP = 64  # images that pass at a time
NOISE = 4  # images by which engines are compared
FEW = 1_000  # images, up to which it takes longer to export a graph than it saves
COSINE = {"fp32": 0.9999, "bf16": 0.999}  # least agreement of the features of each image with those of `eager`
TITLES = {
    "eager": "PyTorch",
    "folded": "PyTorch, with BatchNorm folded into convolutions",
    "onnxruntime": "ONNX Runtime",
    "compiled": "PyTorch, compiled",
}
PACKAGES = (*onnx_graphs.EXPORT_NEEDS, *onnx_graphs.RUN_NEEDS)


class UnfitError(Exception):
    """An engine cannot compute a network; the text says why."""


class Engine(ABC):
    """(N, C, S, S) → (N, D) in float32, on the device of the images.

    Args:
        network: in evaluation mode, on its device; it is not changed.
        placement: of the network.
    """

    def __init__(self, network: nn.Module, placement: Placement) -> None:
        self._network = network
        self._device = placement.device
        self._precision = placement.precision

    @abstractmethod
    def prepare(self, shape: tuple[int, ...]) -> None:
        """Do what is done once for images of a shape, (C, S, S).

        Raises:
            UnfitError: it cannot be done.
        """

    def prepare_or_say(self, shape: tuple[int, ...]) -> None:
        """The same; what cannot be done is the user's to know.

        Raises:
            UserError: it cannot be done.
        """
        try:
            self.prepare(shape)
        except UnfitError as error:
            raise UserError(f"{error}; name another engine: --feature-engine folded") from error

    @abstractmethod
    def _group(self, images: Tensor) -> Tensor:
        """The features of at most `GROUP` images of a shape that is prepared."""

    def __call__(self, images: Tensor) -> Tensor:
        """The features.

        Raises:
            UserError: the engine cannot compute this network.
        """
        self.prepare_or_say(tuple(images.shape[1:]))
        return torch.cat([self._group(group) for group in torch.split(images, GROUP)])

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raises UnfitError where the features differ from those of the network as it is."""
        cosine = self._likeness(self._group, shape)
        if not cosine >= COSINE[self._precision]:
            raise UnfitError(f"its features differ from those of PyTorch (cosine {cosine:.4f} on noise)")

    def _likeness(self, compute: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
        """The least cosine of the features of an image of noise, and those of the network as it is."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(NOISE, *shape, generator=generator).to(self._device)
        with torch.no_grad():
            expected = eager(self._network, noise, self._precision)
            given = compute(noise)
        cosine = torch.cosine_similarity(given.double(), expected.double(), dim=1)
        is_same = (given == expected).all(dim=1)  # a row of zeros has no cosine
        return float(torch.where(is_same, 1.0, cosine).min())


def eager(network: nn.Module, images: Tensor, arithmetic: str) -> Tensor:
    """The features as the network itself computes them."""
    with precision.lowered(images.device, arithmetic):
        features: Tensor = network(images)
    return features.float()


class Folded(Engine):
    """The network with each BatchNorm folded into the convolution before it, channels-last; compiled if that is asked for."""

    def __init__(self, network: nn.Module, placement: Placement, is_compiled: bool = False) -> None:
        super().__init__(network, placement)
        self._is_compiled = is_compiled
        self._run: nn.Module | None = None
        self._checked: set[tuple[int, ...]] = set()

    def prepare(self, shape: tuple[int, ...]) -> None:
        if shape in self._checked:
            return
        if self._run is None:
            self._run = self._laid_out(folded(self._network))
        try:
            self._check(shape)
        except UnfitError:
            if self._is_compiled:
                raise
            # Such as a convolution that standardises its weights, in which nothing can be folded.
            self._run = self._laid_out(copy.deepcopy(self._network))
            self._check(shape)
        except Exception as error:
            if self._is_compiled:
                raise UnfitError(f"torch.compile fails: {_first_line(error)}") from error
            raise
        self._checked.add(shape)

    def _laid_out(self, network: nn.Module) -> nn.Module:
        network = network.train(False).requires_grad_(False).to(memory_format=torch.channels_last)
        if self._is_compiled:
            network.compile(dynamic=False, options={"freezing": True})
        return network

    def _group(self, images: Tensor) -> Tensor:
        assert self._run is not None
        count = len(images)
        if self._is_compiled and count < GROUP:  # another shape would be compiled again
            images = torch.cat([images, images.new_zeros(GROUP - count, *images.shape[1:])])
        return eager(self._run, images.contiguous(memory_format=torch.channels_last), self._precision)[:count]


class OnnxRuntime(Engine):
    """The network as a graph for each size of images. A graph is kept on disk once it has been compared.

    Args:
        network, placement: as of every engine.
        cache: where graphs are kept.
        digest: of the network's weights.
    """

    def __init__(self, network: nn.Module, placement: Placement, cache: Cache, digest: str) -> None:
        super().__init__(network, placement)
        self._cache = cache
        self._digest = digest
        self._graphs: dict[tuple[int, ...], onnx_graphs.Graph] = {}

    def prepare(self, shape: tuple[int, ...]) -> None:
        if shape in self._graphs:
            return
        kept = KeptNetwork(self._cache, self._key(shape))
        content = kept.read()
        fresh = content is None
        try:
            if content is None:
                content = self._exported(shape)
            self._graphs[shape] = onnx_graphs.Graph(content, torch.get_num_threads())
            if fresh:
                self._check(shape)
        except Exception as error:  # ONNX Runtime names no common base for what it raises
            self._graphs.pop(shape, None)
            raise UnfitError(f"ONNX Runtime cannot compute this network: {_first_line(error)}") from error
        if fresh:
            kept.keep(content)

    def _exported(self, shape: tuple[int, ...]) -> bytes:
        """The graph, of the folded network where its features are the same: it has fewer operations to export."""
        network = folded(self._network)
        if self._likeness(lambda images: eager(network, images, self._precision), shape) < COSINE[self._precision]:
            network = self._network
        program = onnx_graphs.exported(network, torch.zeros(2, *shape), ["images"], ["features"])
        return onnx_graphs.serialized(program)

    def is_kept(self, shape: tuple[int, ...]) -> bool:
        """Whether a graph for images of a shape is on disk."""
        return KeptNetwork(self._cache, self._key(shape)).read() is not None

    def _key(self, shape: tuple[int, ...]) -> tuple[object, ...]:
        return VERSION, self._digest, *shape, torch.__version__

    def _group(self, images: Tensor) -> Tensor:
        return self._graphs[tuple(images.shape[1:])](images)


def build(name: str, network: nn.Module, placement: Placement, cache: Cache, digest: str) -> Engine:
    """The engine of that name, which is not `eager`: that is the network itself."""
    if name == "onnxruntime":
        return OnnxRuntime(network, placement, cache, digest)
    return Folded(network, placement, name == "compiled")


def check(name: str, placement: Placement) -> None:
    """See that an engine can be had here.

    Raises:
        UserError: a package or a compiler is missing, or it does not compute so.
    """
    if name == "compiled":
        devices.check_compiler(placement.device)
    if name != "onnxruntime":
        return
    missing = onnx_graphs.missing_packages(*PACKAGES)
    if missing:
        raise UserError(
            f"--feature-engine onnxruntime needs packages that are not installed; pip install {' '.join(missing)}"
        )
    if placement.device != devices.CPU:
        raise UserError("--feature-engine onnxruntime computes on the CPU; leave --gpus out, or name another engine")
    if placement.precision == "bf16":
        raise UserError(
            "--feature-engine onnxruntime computes in float32; give --precision fp32, or --feature-engine folded"
        )


def suitable(placement: Placement, count: int | None = None) -> str:
    """The engine that `auto` means: the fastest of those that can be had on this device, in this precision.

    Args:
        placement: of the network.
        count: of the images that will come, one for each view; none: many.
    """
    if placement.device != devices.CPU or placement.compiles:
        with suppress(UserError):
            check("compiled", placement)
            return "compiled"
    if count is not None and count <= FEW:
        return "folded"
    with suppress(UserError):
        check("onnxruntime", placement)
        return "onnxruntime"
    return "folded"


def for_scoring(settings: Mapping[str, Any], where: torch.device) -> tuple[dict[str, Any], str]:
    """A checkpoint's settings to score it on a device, and what to tell of them; empty: nothing."""
    name = settings.get("feature_engine")
    reason = ""
    if name == "onnxruntime" and where != devices.CPU:
        reason = "it computes on the CPU"
    elif name == "onnxruntime" and (missing := onnx_graphs.missing_packages(*PACKAGES)):
        reason = f"{' and '.join(missing)} cannot be found"
    elif name == "compiled" and where == devices.CPU:
        reason = "compiling takes a CPU longer than it spares"
    if not reason:
        return dict(settings), ""
    remark = (
        f"the checkpoint was trained on features by the engine {name}, and {reason}; the engine folded computes them "
        "here, equal to rounding"
    )
    return {**settings, "feature_engine": "folded"}, remark


def title(name: str) -> str:
    """An engine's name for people."""
    version = ""
    if name == "onnxruntime":
        import onnxruntime

        version = f" {onnxruntime.__version__}"
    return TITLES[name] + version


class _Tracer(fx.Tracer):
    """Leaves convolutions of other packages whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module) -> nn.Module:
    """A copy with each BatchNorm folded into the convolution before it; whole where its `forward` cannot be traced."""
    # Hooks of the network run where a module calls it.
    root = nn.Sequential(copy.deepcopy(network)).train(False)
    if not any(type(part) is nn.BatchNorm2d for part in root.modules()):
        return root
    try:
        graph = _Tracer().trace(root)
    except Exception:  # whatever control flow raises
        return root
    modules = dict(root.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm = modules[str(node.target)]
        convolution = modules[str(before.target)]
        is_once = calls.count(node.target) == 1 and calls.count(before.target) == 1
        if is_once and type(norm) is nn.BatchNorm2d and norm.track_running_stats and isinstance(convolution, nn.Conv2d):
            root.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return fx.GraphModule(root, graph)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition(os.linesep)[0]
