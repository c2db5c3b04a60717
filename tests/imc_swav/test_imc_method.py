from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, fill, picture, resolve, shared
from torch import nn

import main
from imc_swav.authors import our_name
from imc_swav.data import Batch
from imc_swav.method import IMCSwAV, IMCSwAVSettings
from lib.checkpoints import checkpoint
from lib.config import command_line, config
from lib.config.config import Config
from lib.errors import UserError
from lib.networks.resnet import ResNet18
from lib.scoring import evaluation

Cli = Callable[..., tuple[int, str, str]]


def authors_model() -> OrderedDict[str, torch.Tensor]:
    keys = json.loads((GOLDEN / "imc_state_dict_keys.json").read_text())["cifar"]
    return OrderedDict((key, fill(i, key, shape)) for i, (key, shape) in enumerate(keys))


def recorded() -> tuple[IMCSwAV, Any]:
    golden = np.load(GOLDEN / "imc_model_cifar.npz", allow_pickle=False)
    settings = IMCSwAVSettings(
        nmb_crops=tuple(golden["nmb_crops"].tolist()), prototypes=int(golden["prototypes"]),
        project_dim=int(golden["project_dim"]), tau=float(golden["tau"]), eps=float(golden["eps"]),
        frozen_prototype_steps=int(golden["warmup_steps"]),
    )  # fmt: skip
    network = ResNet18(3, ResNet18.Settings(net_stem="small"))
    method = IMCSwAV(network, int(golden["n_classes"]), 10, settings).double()
    checkpoint.load_weights(
        method, {our_name(key): value for key, value in authors_model().items()}, "the recorded model"
    )
    return method, golden


def test_outputs_equal_the_authors() -> None:
    method, golden = recorded()
    method.eval()
    x = torch.from_numpy(golden["x"])
    with torch.no_grad():
        features = method.network(x)
        np.testing.assert_allclose(features, golden["features"], rtol=1e-9)
        np.testing.assert_allclose(method.classifier(features), golden["class_logits"], rtol=1e-9)
        scores = method.prototypes(method.projection(features))
        np.testing.assert_allclose(scores, golden["prototype_scores"], rtol=1e-9)


@pytest.mark.parametrize("stop_after", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_training_steps_equal_the_authors_also_across_a_stop(stop_after: int | None, tmp_path: Path) -> None:
    def optimizer_of(method: IMCSwAV) -> torch.optim.Optimizer:
        return torch.optim.Adam(method.parameters(), lr=float(golden["lr"]), betas=(0.8, 0.999), weight_decay=1e-5)

    method, golden = recorded()
    optimizer = optimizer_of(method)
    views = [torch.from_numpy(golden[f"view{v}"]) for v in range(6)]
    batch = Batch(torch.arange(10), views, torch.ones(10, dtype=torch.bool))
    method.train()
    losses = []
    for step in range(3):
        if step == stop_after:
            state = {"config": {}, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save(state, tmp_path / "a.ckpt")
            stored = checkpoint.load(tmp_path / "a.ckpt")
            method, _ = recorded()
            method.train()
            checkpoint.load_weights(method, stored["method"], "it")
            optimizer = optimizer_of(method)
            optimizer.load_state_dict(stored["optimizer"])
        method.before_forward(step)
        norms = method.prototypes.weight.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        before = method.prototypes.weight.detach().clone()
        parts = method(batch)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        method.after_backward(step)
        optimizer.step()
        assert torch.equal(before, method.prototypes.weight) == (step < golden["warmup_steps"])
        losses.append([parts[name].item() for name in ("swapped", "mi", "logits")])
        assert parts["loss"].item() == pytest.approx(sum(losses[-1]))
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-7)
    method.eval()
    with torch.no_grad():
        after = method.classifier(method.network(torch.from_numpy(golden["x"])))
    np.testing.assert_allclose(after, golden["after_class_logits"], rtol=1e-7)


class Flat(nn.Module):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(images.flatten(1))
        return out


def small(batch_size: int = 6, **settings: Any) -> IMCSwAV:
    torch.manual_seed(0)
    made = IMCSwAVSettings(nmb_crops=(2,), prototypes=5, project_dim=3, classifier_dim=8, **settings)
    return IMCSwAV(Flat(), 3, batch_size, made).train()


def batch(start: int, n: int, classified: list[bool]) -> Batch:
    chance = torch.Generator().manual_seed(start)
    views = [torch.randn(n, 1, 2, 2, generator=chance) for _ in range(2)]
    return Batch(torch.arange(start, start + n), views, np.array(classified))


def test_the_classifiers_loss_never_reaches_the_encoder() -> None:
    method = small()
    parts = method(batch(0, 6, [True] * 6))
    (parts["loss"] - parts["swapped"]).backward(retain_graph=True)
    with torch.no_grad():
        reached = [weight.grad for name, weight in method.named_parameters() if "classifier" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in reached[-2:])
    method.zero_grad()
    swapped_only = small()
    swapped_only(batch(0, 6, [False] * 6))["loss"].backward()
    method(batch(0, 6, [True] * 6))["loss"].backward()
    for ours, theirs in zip(method.network.parameters(), swapped_only.network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def test_the_bank_waits_for_a_batch_and_is_emptied() -> None:
    method = small(batch_size=6)
    first = method(batch(0, 4, [True, False, True, True]))
    assert first["mi"] == 0 and first["logits"] == 0 and "cluster" not in first and len(method.bank) == 3
    again = small(batch_size=6)
    again.load_state_dict(method.state_dict())
    for one in (method, again):
        second = one(batch(10, 4, [True, True, False, True]))
        assert second["index"].tolist() == [0, 2, 3, 10, 11, 13] and len(one.bank) == 0
        assert second["mi"] < 0 and second["cluster"].shape == (6,)
        last = second["mi"]
    assert torch.equal(last, second["mi"]), "a half-full bank is part of the state"
    method(batch(20, 4, [True] * 3 + [False]))
    method.start_epoch(1)
    assert len(method.bank) == 0
    held = sum(len(method.bank) for _ in range(50) if method(batch(30, 4, [True, False, False, False])) is not None)
    assert held <= 50 * 6


@pytest.mark.parametrize(("idle", "moves"), [("zeros", True), ("none", False)])
def test_an_idle_classifier(idle: str, moves: bool) -> None:
    method = small(batch_size=4, idle_classifier=idle)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    before = [weight.detach().clone() for weight in method.classifier.parameters()]
    for step, classified in enumerate(([False] * 4, [True] * 4, [False] * 4)):
        method.before_forward(step)
        parts = method(batch(step, 4, classified))
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        method.after_backward(step)
        optimizer.step()
        now = [weight.detach().clone() for weight in method.classifier.parameters()]
        moved = not all(map(torch.equal, before, now))
        assert moved == (False, True, moves)[step]
        before = now


def test_idle_parameters_are_those_without_a_gradient() -> None:
    method = small(batch_size=6)
    found = []
    for start, count in ((0, 4), (10, 0), (20, 1), (30, 1), (40, 3), (50, 4)):
        given = batch(start, 4, [i < count for i in range(4)])
        idle = set(method.idle_parameters(given))
        method.zero_grad(set_to_none=True)
        method(given)["loss"].backward()
        assert {weight for weight in method.parameters() if weight.grad is None} == idle
        found.append(bool(idle))
    # The bank holds 0 to 5 of its 6; the last batch is whole, and the bank not empty.
    assert found == [False, True, True, True, True, False]


QUICK = ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/digits.yaml", "--seed", 7,
         "--train-splits", "train", "--test-splits", "test", "--num-workers", 0, "--net-width", 4, "--batch-size", 256,
         "--prototypes", 20, "--classifier-dim", 16, "--size-crops", 12, 8, "--max-epochs", 2, "--eval-every", 1,
         "--baseline", "none", "--eval-sample", 50, "--warmup-steps", 2, "--frozen-prototype-steps", 2)  # fmt: skip
ALL = ("--batchnorm-scores", "train_bn", "plain", "test_bn")


def test_a_run_is_scored_under_each_treatment(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli(*QUICK, *ALL, "--top-k", 3, "--session", "a")
    assert status == 0, err
    path = tmp_path / "sessions" / "a"
    names = ["test", "test:plain", "test:test_bn", "train:online"]
    scores = json.loads((path / "scores.json").read_text())
    assert list(scores) == names and scores["test"]["batchnorm"] == "train_bn" and "matching" in scores["test"]
    assert scores["test"]["top3"] >= scores["test"]["acc"]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == names * 2
    titles = ("imc_swav", "imc_swav, plain", "imc_swav, test_bn", "while training")
    assert all(f"\n{title}  " in out for title in titles)
    status, _, err = cli("--evaluate", path / "checkpoint" / "latest.ckpt", "--session", "b")
    assert status == 0, err
    other = json.loads((tmp_path / "sessions" / "b" / "scores.json").read_text())
    assert {name: other[name] for name in names[:3]} == {name: scores[name] for name in names[:3]}
    status, _, err = cli("--evaluate", path / "checkpoint" / "latest.ckpt", "--batch-size", 2000)
    assert status == 0, "the rules of training are not those of scoring"
    status, _, err = cli("--evaluate", path / "checkpoint" / "latest.ckpt", "--batch-size", 1)
    assert status == 2 and "train_bn needs batches of two pictures or more" in err


def task_of(settings: Config) -> Any:
    return main.build(settings)


def test_evaluation_leaves_every_buffer_as_it_found_it() -> None:
    settings = resolve(*QUICK, *ALL)
    task = task_of(settings)
    task.method.train()
    before = {name: value.clone() for name, value in task.method.state_dict().items() if torch.is_tensor(value)}
    momenta = [getattr(part, "momentum", None) for part in task.method.modules()]
    scores = evaluation.evaluate(task).scores
    after = task.method.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [getattr(part, "momentum", None) for part in task.method.modules()] == momenta
    assert all(part.training for part in task.method.modules())
    assert scores["test"]["confidence"] != scores["test:plain"]["confidence"] != scores["test:test_bn"]["confidence"]


def test_train_bn_is_the_average_over_training_pictures() -> None:
    settings = resolve(*QUICK, "--batch-size", 899)
    task = task_of(settings)
    seen = []
    hook = task.method.network.layers[0].register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    found = []
    norm = task.method.network.layers[1]
    keep = norm.register_forward_hook(lambda m, i, o: found.append((m.running_mean.clone(), m.running_var.clone())))
    evaluation.evaluate(task)
    hook.remove()
    keep.remove()
    assert len(seen[0]) == 899, "one batch of all training pictures comes first"
    torch.testing.assert_close(found[-1][0], seen[0].mean(dim=(0, 2, 3)))
    # PyTorch sums the 230,144 float32 numbers of a channel in one pass.
    torch.testing.assert_close(found[-1][1], seen[0].var(dim=(0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("model_type", ["resnet18"])
def test_their_checkpoints_evaluate_to_the_recorded_outputs(model_type: str, tmp_path: Path) -> None:
    golden = np.load(GOLDEN / "imc_model_cifar.npz", allow_pickle=False)
    hyperparams = {"n_classes": 10, "encoder_size": 512, "prototypes": 50, "project_dim": 32, "tau": 0.1, "eps": 0.05,
                   "model_type": model_type}  # fmt: skip
    torch.save({"model": authors_model(), "hyperparams": hyperparams, "epoch": 499}, tmp_path / "theirs.pth")
    stored = checkpoint.load(tmp_path / "theirs.pth")
    raw = main.DEFAULTS | command_line.collect(
        ["--cfgs", str(ROOT / "configs/imc_swav/base.yaml"), str(ROOT / "configs/imc_swav/cifar10.yaml"), "--dataset", "digits",
         "--train-splits", "train", "--batch-size", "64", "--evaluate", "theirs"],
        main.SECTIONS,
    )  # fmt: skip
    settings = config.resolve(raw, main.SECTIONS, stored["config"])
    method = main.build(settings).method.double()
    assert isinstance(method, IMCSwAV) and method.settings.prototypes == 50
    checkpoint.load_weights(method, stored["method"], "it")
    method.eval()
    with torch.no_grad():
        features = method.network(torch.from_numpy(golden["x"]))
        np.testing.assert_allclose(features, golden["features"], rtol=1e-9)
        np.testing.assert_allclose(method.classifier(features), golden["class_logits"], rtol=1e-9)
    torch.save(
        {"model": authors_model(), "hyperparams": {**hyperparams, "model_type": "vgg"}, "epoch": 1}, tmp_path / "a.pth"
    )
    with pytest.raises(UserError, match="model_type 'vgg'"):
        checkpoint.load(tmp_path / "a.pth")
    torch.save({"model": {"x": torch.zeros(1)}, "hyperparams": hyperparams, "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="no weight of the IMC-SwAV authors' model"):
        checkpoint.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", 900), "899 training pictures do not fill a batch of 900"),
        (("--batch-size", 1), "a batch of one picture"),
        (("--classifier-splits", "test"), "would learn from 0 of the training pictures"),
        (("--nmb-crops", 1), "need as many values as each other"),
        (("--nmb-crops", 1, 0), "needs a large crop, and another crop"),
        (("--nmb-crops", 0, 4), "needs a large crop"),
        (("--min-scale-crops", 0.9, 0.9), "min_scale_crops is above max_scale_crops"),
        (("--num-clusters", "none"), "how many clusters"),
        (("--net-heads", 70, 10), "belongs to the method pica"),
        (("--method", "pica"), "belongs to the method imc_swav"),
        (("--classifier-splits", "tset"), "no split 'tset' is in use"),
    ],
)
def test_mistakes(words: tuple[object, ...], message: str, cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli(*QUICK, *words)
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--prototypes", 2000), ("--nmb-crops", 1, 1), ("--nmb-crops", 2, 0), ("--size-crops", 40, 36),
        pytest.param(("--network", "resnet18", "--max-steps", 1), marks=pytest.mark.slow), ("--classifier-splits", "train"),
    ],
)  # fmt: skip
def test_odd_settings_that_work(words: tuple[object, ...], cli: Cli) -> None:
    status, _, err = cli(*QUICK, "--max-epochs", 1, *words)
    assert status == 0, err


def test_a_folder_of_pictures_of_mixed_size(cli: Cli, tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "pictures" / f"{i}.png", (20 + 3 * i, 60 - 2 * i), seed=i)
    status, out, err = cli(
        "--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/image_folder.yaml", "--data-root",
        tmp_path / "pictures", "--num-clusters", 3, "--batch-size", 4, "--network", "convnet", "--num-workers", 0,
        "--max-epochs", 1, "--prototypes", 8,
    )  # fmt: skip
    assert status == 0 and "no labels" in out, err


def test_the_shipped_tiny_imagenet_configuration_runs_on_real_files(cli: Cli) -> None:
    status, out, err = cli(
        "--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/tiny_imagenet.yaml", "--data-root",
        shared("data/tiny-imagenet-10"), "--network", "convnet", "--net-width", 4, "--batch-size", 64, "--max-steps", 2,
        "--num-clusters", 10, "--num-workers", 0, "--batchnorm-scores", "train_bn", "--tfm-size", 32, "--tfm-resize", 32,
        "--size-crops", 16, 12,
    )  # fmt: skip
    assert status == 0 and "val" in out, err
