"""What computes a frozen network: the same features, whichever engine, and the choice stays with a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import QUICK, picture, resolve
from torch import Tensor, nn

import main
from lib import networks
from lib.checkpoints import checkpoint
from lib.errors import UserError
from lib.machine.devices import placement
from lib.methods.method import Task
from lib.networks import engines, onnx_graphs
from lib.networks.backbone import Backbone

Cli = Callable[..., tuple[int, str, str]]
ENGINES = ("folded", "onnxruntime", pytest.param("compiled", marks=pytest.mark.slow))


def words(tmp_path: Path, engine: str) -> tuple[object, ...]:
    return (*QUICK, "--net-heads", 10, "--net-freeze", ".*", "--feature-views", 1, "--cache", tmp_path / "cache",
            "--feature-engine", engine)  # fmt: skip


def task(tmp_path: Path, engine: str, *more: object) -> Task:
    return main.build(resolve(*words(tmp_path, engine), *more))


def features(made: Task) -> Tensor:
    """(N, D) of the plain views."""
    (prepared,) = made.views.plain([torch.arange(len(made.pictures))])
    return prepared.views[0]


def backbone_of(made: Task) -> Backbone:
    assert isinstance(made.encode, Backbone)
    return made.encode


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))


def newest(tmp_path: Path, name: str) -> Path:
    return tmp_path / "sessions" / name / "checkpoint/latest.ckpt"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_in_float32_agrees_with_the_network_as_it_is(engine: str, tmp_path: Path) -> None:
    plain = features(task(tmp_path, "eager"))
    made = task(tmp_path, engine)
    given = features(made)
    assert made.config.as_dict()["feature_engine"] == engine
    assert not torch.equal(given, plain), "another engine computed"
    assert torch.cosine_similarity(given.double(), plain.double(), dim=1).min() >= 0.9999
    heads = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    agreement = ((given @ heads).argmax(dim=1) == (plain @ heads).argmax(dim=1)).float().mean()
    assert agreement >= 0.995
    assert engines.TITLES[engine] in made.views.describe() and "images/s" in made.views.describe()


def test_bfloat16_keeps_to_its_own_bound(tmp_path: Path) -> None:
    plain = features(task(tmp_path, "eager"))
    given = features(task(tmp_path, "folded", "--precision", "bf16"))
    assert torch.cosine_similarity(given.double(), plain.double(), dim=1).min() >= engines.COSINE["bf16"]


def test_batchnorm_is_folded_and_the_weights_stay_those_of_the_network() -> None:
    network = networks.get("convnet")(3, networks.get("convnet").Settings(net_width=4)).train(False)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.running_mean)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(3, 3, 16, 16)
    graph = engines.folded(network)
    assert not any(node.target == name for name, part in graph.named_modules() if isinstance(part, nn.BatchNorm2d)
                   for node in graph.graph.nodes), "none is computed"  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(graph(images), network(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Standardised(nn.Conv2d):
    """A convolution whose weights are brought to standard deviation 1: a factor on them has no effect."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight / self.weight.std(), self.bias)


class Odd(nn.Module):
    """A network in which BatchNorm cannot be folded."""

    feature_dim = 6

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.convolution = Standardised(in_channels, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_var.fill_(4.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images)).relu().mean(dim=(2, 3))  # type: ignore[no-any-return]


class Branching(Odd):
    """A network whose operations depend on the numbers, which no graph expresses."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.sum()) != 0.5 else -images)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks._registry._components, "odd", Odd)
    monkeypatch.setitem(networks._registry._components, "branching", Branching)


def test_what_cannot_be_folded_is_computed_as_it_is(odd: None, tmp_path: Path) -> None:
    plain = features(task(tmp_path, "eager", "--network", "odd", "--net-sobel", "false"))
    given = features(task(tmp_path, "folded", "--network", "odd", "--net-sobel", "false"))
    torch.testing.assert_close(given, plain, rtol=1e-4, atol=1e-5)


def test_a_failed_export_is_reported_and_another_engine_takes_its_place(odd: None, tmp_path: Path, cli: Cli) -> None:
    network = ("--network", "branching", "--net-sobel", "false", "--max-steps", 1)
    status, _, err = cli(*words(tmp_path, "auto"), *network, "--session", "a")
    assert status == 0, err
    assert "ONNX Runtime cannot compute this network" in err and "the engine folded takes its place" in err
    assert checkpoint.load(newest(tmp_path, "a"))["config"]["feature_engine"] == "folded"
    with pytest.raises(UserError, match="ONNX Runtime cannot compute this network.*--feature-engine folded"):
        task(tmp_path, "onnxruntime", *network).views.prepare()


def test_an_engine_whose_features_differ_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = onnx_graphs.Graph.__call__
    monkeypatch.setattr(onnx_graphs.Graph, "__call__", lambda graph, images: run(graph, images).flip(1))
    with pytest.raises(UserError, match="its features differ from those of PyTorch"):
        task(tmp_path, "onnxruntime").views.prepare()
    assert not list((tmp_path / "cache").glob("networks-*"))


@pytest.mark.parametrize("engine", ["folded", "onnxruntime"])
def test_bits_do_not_depend_on_what_is_kept_already(engine: str, tmp_path: Path) -> None:
    for i in range(150):
        picture(tmp_path / "images" / f"{i:03}.png", seed=i)
    folder = ("--dataset", "image_folder", "--data-root", tmp_path / "images", "--train-splits", "all", "--test-splits", "all",
              "--net-cin", 3, "--tfm-means", 0.5, 0.5, 0.5, "--tfm-stds", 0.2, 0.2, 0.2)  # fmt: skip
    first = features(task(tmp_path, engine, *folder))
    for number in (3, 70, 149):
        picture(tmp_path / "images" / f"{number:03}.png", seed=1000 + number)
    made = task(tmp_path, engine, *folder)
    second = features(made)
    assert "3 computed" in made.views.describe()
    assert torch.equal(second, features(task(tmp_path / "afresh", engine, *folder)))
    same = [i for i in range(150) if i not in (3, 70, 149)]
    assert torch.equal(second[same], first[same])


def test_features_of_another_engine_are_computed_again_and_a_graph_is_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[int] = []
    export = onnx_graphs.exported
    monkeypatch.setattr(onnx_graphs, "exported", lambda *given: exports.append(1) or export(*given))
    for engine in ("eager", "auto"):
        made = task(tmp_path, engine)
        made.views.prepare()
        assert "1,797 computed" in made.views.describe()
    for engine in ("eager", "onnxruntime", "auto"):
        made = task(tmp_path, engine)
        made.views.prepare()
        assert "none to compute" in made.views.describe()
    assert made.config.as_dict()["feature_engine"] == "onnxruntime" and exports == [1]
    other = task(tmp_path, "auto", "--feature-views", 2)
    other.views.prepare()
    assert exports == [1], "the graph was kept"
    (graph,) = (tmp_path / "cache").glob("networks-*/data.bin")
    graph.write_bytes(graph.read_bytes()[:-1])
    task(tmp_path, "auto", "--feature-views", 3).views.prepare()
    assert exports == [1, 1], "a damaged graph is exported again"


def test_a_run_keeps_its_engine(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        cli(*words(tmp_path, "auto"), "--session", "a", "--save-backbone", "--max-epochs", 2, "--max-steps", 4)[0] == 0
    )
    written = yaml.safe_load((tmp_path / "sessions/a/config.yaml").read_text())
    stored = checkpoint.load(newest(tmp_path, "a"))
    assert written["feature_engine"] == stored["config"]["feature_engine"] == "onnxruntime"
    drawn = backbone_of(task(tmp_path, "eager"))
    assert stored["backbone"]["digest"] == drawn.digest
    assert all(
        torch.equal(stored["backbone"]["weights"][name], value) for name, value in drawn.network.state_dict().items()
    )
    status, _, err = cli("--resume", newest(tmp_path, "a"), "--feature-engine", "folded")
    assert status == 2 and "--feature-engine folded contradicts the checkpoint" in err
    status, out, err = cli("--resume", newest(tmp_path, "a"), "--cache", tmp_path / "cache", "--max-steps", "none")
    assert status == 0 and "by ONNX Runtime" in out and "none to compute" in out, err

    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png", seed=i)
    predict = ("--predict", newest(tmp_path, "a"), "--data-root", tmp_path / "images")
    status, out, err = cli(*predict, "--session", "b")
    assert status == 0 and "by ONNX Runtime" in out and "the engine" not in err
    without(monkeypatch, "onnxruntime")
    status, out, err = cli(*predict, "--session", "c")
    assert status == 0 and "with BatchNorm folded" in out and "onnxruntime cannot be found; the engine folded" in err
    assert "the engine folded" in main.load(str(newest(tmp_path, "a"))).warning
    found = [np.load(tmp_path / f"sessions/{name}/predictions.npz")["probability"] for name in "bc"]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    status, _, err = cli(*predict, "--session", "d", "--feature-engine", "onnxruntime")
    assert status == 2 and "pip install onnxruntime" in err


def test_a_checkpoint_from_before_there_were_engines_takes_none(tmp_path: Path, cli: Cli) -> None:
    assert cli(*words(tmp_path, "eager"), "--session", "a")[0] == 0
    path = newest(tmp_path, "a")
    stored = checkpoint.load(path)
    del stored["config"]["feature_engine"]
    checkpoint.save({name: value for name, value in stored.items() if name != "format"}, path)
    assert backbone_of_model(path).engine == "eager"
    status, out, err = cli("--evaluate", path, "--session", "b", "--cache", tmp_path / "cache")
    assert status == 0 and "by PyTorch: " in out and "none to compute" in out, err


def backbone_of_model(path: Path) -> Backbone:
    encode = main.load(str(path)).encode
    assert isinstance(encode, Backbone)
    return encode


def test_auto_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = resolve(*words(tmp_path, "auto"))
    assert engines.suitable(placement(frozen)) == "onnxruntime"
    assert engines.suitable(placement(frozen), engines.FEW) == "folded", "exporting would take longer"
    assert engines.suitable(placement(frozen), engines.FEW + 1) == "onnxruntime"
    assert engines.suitable(placement(frozen.replace(precision="bf16"))) == "folded"
    assert engines.suitable(placement(frozen.replace(compile=True))) == "compiled"
    without(monkeypatch, "onnxscript")
    assert engines.suitable(placement(frozen)) == "folded"
    trained = main.build(resolve(*QUICK, "--feature-engine", "auto"))
    assert trained.config.as_dict()["feature_engine"] == "eager", "nothing is frozen"


def test_a_dry_run_exports_nothing(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graphs, "exported", lambda *given: pytest.fail("it was exported"))
    assert cli(*words(tmp_path, "auto"), "--dry-run")[0] == 0


@pytest.mark.parametrize(("more", "reason"), [(("--precision", "bf16"), "computes in float32; give --precision fp32")])
def test_what_onnx_runtime_does_not_do(more: tuple[object, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        task(tmp_path, "onnxruntime", *more)


def test_a_few_images_are_not_worth_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(tmp_path, "auto")
    assert made.config.as_dict()["feature_engine"] == "onnxruntime" and len(made.pictures) == 1797
    monkeypatch.setattr(engines, "FEW", 2 * 1797)  # a plain and a random view of each
    assert task(tmp_path, "auto").config.as_dict()["feature_engine"] == "folded"


def test_a_network_that_cannot_be_folded_is_exported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = features(task(tmp_path, "eager"))
    wrong = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(plain.shape[1]))
    monkeypatch.setattr(engines, "folded", lambda network: wrong)
    given = features(task(tmp_path, "onnxruntime"))
    assert torch.cosine_similarity(given.double(), plain.double(), dim=1).min() >= 0.9999
