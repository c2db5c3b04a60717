"""What an author may get wrong in a method ends in one line that names the method, the part and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DIGITS, ROOT, picture, resolve
from torch import Tensor, nn

import main
from lib.config import command_line
from lib.config.registry import Registry
from lib.errors import UserError
from lib.methods import method, method_checks
from lib.methods.method import ViewMethod
from lib.training.trainer import Trainer
from lib.transforms import TransformSettings, original, perturbed

PLAIN = """
from dataclasses import dataclass

import torch
from torch import nn

from lib.config.settings import Section, setting
from lib.methods.method import ViewMethod, register
from lib.transforms import original, perturbed


@register("mine")
class Mine(ViewMethod):
    @dataclass(frozen=True)
    class Settings(Section):
        mine_weight: float = setting(1.0, "weight of the entropy", low=0)

    def __init__(self, network, num_clusters, settings):
        super().__init__(network, num_clusters, settings)
        self.head = nn.Sequential(nn.BatchNorm1d(network.feature_dim), nn.Linear(network.feature_dim, num_clusters))
        self.classified = 0
        self.register_buffer("mean", torch.zeros(num_clusters))

    def views(self, transforms):
        return original(transforms), perturbed(transforms)

    def classify(self, features):
        probability = self.head(features).softmax(dim=1)
        return probability

    def loss(self, features):
        p, q = map(self.classify, features)
        loss = (p - q).square().mean()
        return loss
"""
VIEWS = "return original(transforms), perturbed(transforms)"
WORDS = (
    "--method", "mine", "--seed", 7, "--num-clusters", 10, "--network", "convnet", "--net-width", 4, "--net-cin", 1,
    "--tfm-size", 8, "--tfm-resize", 10, "--tfm-colorjitter", 0.8, 0.8, 0, 0, "--batch-size", 512, "--base-lr", 1e-3,
    "--max-steps", 1, "--max-epochs", 1, "--eval-sample", 0, "--threads", 1, "--log-tfb", "false",
)  # fmt: skip
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Methods that a test registers are gone after it, and so are its modules."""
    registry: Any = method._registry
    monkeypatch.setattr(registry, "_components", dict(registry._components))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    modules = set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


def mistake(cli: Cli, code: str, *words: object) -> str:
    """The one line in which a run of a method ends."""
    Path("my_method.py").write_text(code, encoding="utf-8")
    sys.path_importer_cache.clear()
    status, _, err = cli("--imports", "my_method", *WORDS, *words)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def changed(*pairs: tuple[str, str]) -> str:
    code = PLAIN
    for old, new in pairs:
        assert code.count(old) == 1
        code = code.replace(old, new)
    return code


def line_of(code: str, text: str) -> int:
    return 1 + next(number for number, line in enumerate(code.splitlines()) if text in line)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (
            ("class Settings(Section):", "class Base(Section):\n        pass\n\n    class Settings(Base):"),
            "@register",
            "Mine.Settings, are no dataclass; write `@dataclass",
        ),
        (("    @dataclass(frozen=True)\n", ""), "@register", "Mine.Settings, are no dataclass; write `@dataclass"),
        (
            ("Settings(Section)", "Settings"),
            "@register",
            "Mine.Settings, are no Section; write `class Settings(Section)`",
        ),
        (
            ('setting(1.0, "weight of the entropy", low=0)', "1.0"),
            "@register",
            "Mine.Settings, have the field mine_weight without `setting`",
        ),
        (('@register("mine")', '@register("pica")'), "@register", "the method 'pica' is registered already; choose"),
        (("Settings(Section):", "Settings(Section):\n        x: list = []"), "@dataclass", "mutable default"),
    ],
)
def test_a_mistake_of_an_import_names_the_line_of_the_users_file(
    change: tuple[str, str], line: str, message: str, cli: Cli
) -> None:
    code = changed(change)
    told = mistake(cli, code)
    assert message in told and told.endswith(f"my_method.py, line {line_of(code, line)})"), told


def test_a_path_that_only_begins_like_the_librarys_is_the_users(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "LIBRARY", tmp_path / "my")
    assert f"{tmp_path / 'my_method.py'}, line 2)" in mistake(cli, "import math\nmath.nonsense\n")


@pytest.mark.parametrize(
    ("change", "part", "message"),
    [
        ((VIEWS, "return original(transforms)"), "views", "gives a value of type Recipe, not a tuple of recipes"),
        ((VIEWS, "return original"), "views", "gives the function `original`, not a tuple of recipes"),
        ((VIEWS, "return None"), "views", "gives None, not a tuple of recipes"),
        ((VIEWS, "return ()"), "views", "gives no recipe"),
        (
            (VIEWS, "return original(transforms), perturbed"),
            "views",
            "gives the function `perturbed` among its recipes",
        ),
        ((VIEWS, "return original(transforms), 3"), "views", "gives a value of type int among its recipes"),
        (("        return loss\n", ""), "loss", 'gives None as "loss", not a tensor of one number'),
        (("return loss", "return (p - q).square().mean(dim=1)"), "loss", 'gives a tensor of shape (512,) as "loss"'),
        (("return loss", 'return {"entropy": loss}'), "loss", 'gives a dict without "loss" (it has entropy)'),
        (("return loss", 'return {"loss": loss, "p": p}'), "loss", 'gives a tensor of shape (512, 10) as "p"'),
        (("return loss", 'return {"loss": loss, "p": 0.5}'), "loss", 'gives a value of type float as "p"'),
        (("return loss", "return loss.detach()"), "loss", "gives a loss without a gradient"),
        (("def loss(", "def forward(self, batch):\n        pass\n\n    def loss("), "forward", "gives None, not a"),
        (("return probability", "return probability[:, :5]"), "classify", "gives a tensor of shape (2, 5) for 2"),
        (("return probability", "return probability.argmax(dim=1)"), "classify", "gives a tensor of shape (2,) for"),
        (("        return probability\n", ""), "classify", "gives None for 2 images, not a tensor of shape (2, 10)"),
        ((".softmax(dim=1)", ""), "classify", "gives no probabilities: a row sums to"),
        (("return probability", "return 20 * probability - 1.9"), "classify", "gives no probabilities: a row sums to 1"),
    ],
)  # fmt: skip
def test_a_part_that_gives_something_else_is_named_with_its_line(
    change: tuple[str, str], part: str, message: str, cli: Cli, tmp_path: Path
) -> None:
    code = changed(change)
    told = mistake(cli, code)
    assert told.startswith(f"error: the method Mine: `{part}` {message}"), told
    assert f"({tmp_path / 'my_method.py'}, line {line_of(code, f'def {part}(')}); " in told
    assert not list(tmp_path.glob("sessions/*")), "a run without results leaves no folder"


def test_a_missing_classify_is_told_when_the_method_is_built(cli: Cli, tmp_path: Path) -> None:
    told = mistake(cli, changed(("    def classify(", "    def sort(")), "--dry-run")
    assert (
        told
        == f"error: the method Mine has no `classify` ({tmp_path / 'my_method.py'}); write it, as docs/extend.md shows"
    )


def test_a_place_among_the_views_that_is_none_is_a_mistake(cli: Cli) -> None:
    told = mistake(cli, changed(("    def views(", "    perturbed_view = 2\n\n    def views(")))
    assert "`views` gives 2 recipes, and perturbed_view is 2 (" in told


def test_a_setting_with_the_name_of_another_in_use_names_both(cli: Cli) -> None:
    told = mistake(cli, changed(("mine_weight", "batch_size")))
    assert "the setting batch_size is declared twice, by my_method.Mine.Settings (method mine) and by" in told
    assert "lib.datasets.DataSettings (data), and both are in use; give the one that is yours another name" in told


def test_a_name_that_two_components_never_share_in_a_run_is_allowed() -> None:
    Path("my_method.py").write_text(changed(("mine_weight", "tau")), encoding="utf-8")
    found = resolve("--imports", "my_method", *WORDS, "--tau", 0.5)
    assert found.as_dict()["tau"] == 0.5
    assert resolve("--cfgs", ROOT / "configs/imc_swav/base.yaml").as_dict()["tau"] == 0.1


LATE = (
    "        loss = (p - q).square().mean()\n",
    "        if not hasattr(self, 'probe'):\n"
    "            self.probe = nn.Linear(10, 1)\n"
    "        loss = (p - q).square().mean() + self.probe(p).mean()\n",
)


def test_a_weight_that_the_first_step_makes_is_told(cli: Cli) -> None:
    told = mistake(cli, changed(LATE))
    assert (
        "the method Mine: the optimizer lacks the weight `probe.weight`, which the first step gave a gradient" in told
    )


def test_a_weight_that_no_step_trains_need_not_be_the_optimizers(cli: Cli) -> None:
    """Such as those of a copy of the network that follows it."""
    follower = (
        "        self.classified = 0\n",
        "        self.follower = nn.Linear(2, 2)\n",
    )
    groups = (
        "    def views(",
        "    def parameter_groups(self):\n"
        "        return [{'params': [*self.network.parameters(), *self.head.parameters()]}]\n\n    def views(",
    )
    Path("my_method.py").write_text(changed(follower, groups), encoding="utf-8")
    assert cli("--imports", "my_method", *WORDS)[0] == 0


def test_a_classify_that_fails_before_it_is_trained_does_not_keep_it_from_training(cli: Cli) -> None:
    late = (
        "        probability = self.head(features).softmax(dim=1)\n",
        "        if not self.classified:\n            raise RuntimeError('not trained')\n"
        "        probability = self.head(features).softmax(dim=1)\n",
    )
    begun = ("    def views(", "    def start_epoch(self, epoch):\n        self.classified = 1\n\n    def views(")
    Path("my_method.py").write_text(changed(late, begun), encoding="utf-8")
    assert cli("--imports", "my_method", *WORDS)[0] == 0


def test_what_classify_gives_is_looked_at_when_it_is_scored(cli: Cli) -> None:
    trained = ("    def views(", "    def start_epoch(self, epoch):\n        self.classified = 1\n\n    def views(")
    for name, last in (("logits", "self.head(features)"), ("shape", "probability[:, 1:]")):
        change = ("        return probability\n", f"        return {last} if self.classified else probability\n")
        told = mistake(cli, changed(change, trained).replace("mine", name), "--method", name)
        del sys.modules["my_method"]
        assert "`classify` gives no probabilities" in told or "`classify` gives a tensor of shape (" in told, told


class Restless(ViewMethod):
    """Its `classify` changes whatever it can: a weight, buffers, an attribute, and the generator of random numbers."""

    count: Tensor

    def __init__(self) -> None:
        network: Any = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
        super().__init__(network, 4)
        self.weight = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def classify(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.div_(self.weight.norm())
        self.count = self.count + 1
        self.calls += 1
        return (features * self.weight + torch.rand(len(features), 4)).softmax(dim=1)


def test_a_look_at_classify_leaves_the_method_as_it_is() -> None:
    restless = Restless()
    seen: list[int] = []
    restless.network.register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in restless.state_dict().items()}
    generator = torch.get_rng_state()
    method_checks.check_classify(restless, (1, 2, 2))
    assert seen, "its own network gives the features"
    assert restless.training and restless.calls == 0
    assert all(torch.equal(value, before[name]) for name, value in restless.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_probabilities_of_half_precision_are_probabilities() -> None:
    restless = Restless()
    torch.manual_seed(0)
    method_checks.check_sums(restless, torch.randn(500, 1000).bfloat16().softmax(dim=1))
    with pytest.raises(UserError, match=r"a row sums to 1.02"):
        method_checks.check_sums(restless, 1.02 * torch.eye(4))


def test_from_python_the_mistake_is_a_user_error() -> None:
    Path("my_method.py").write_text(changed(("return loss", "return None")), encoding="utf-8")
    settings = resolve("--imports", "my_method", *WORDS)
    task = main.build(settings)
    trainer = Trainer(task)
    batch = next(iter(task.source.epoch(0)))
    with pytest.raises(UserError, match='`loss` gives None as "loss"'):
        trainer._train_step(batch)
    task.views.close()


MEMORY = (
    "    def views(",
    "    def source(self, config, pictures, views, recipes):\n"
    "        self.register_buffer('memory', torch.zeros(len(pictures), 2))\n"
    "        return super().source(config, pictures, views, recipes)\n\n    def views(",
)


def test_state_of_the_training_images_is_told_to_be_the_methods(cli: Cli, tmp_path: Path) -> None:
    Path("my_method.py").write_text(changed(MEMORY), encoding="utf-8")
    assert cli("--imports", "my_method", *WORDS, "--session", "one", "--train-splits", "train+test")[0] == 0
    path = tmp_path / "sessions/one/checkpoint/latest.ckpt"
    with pytest.raises(UserError, match=r"the checkpoint does not fit the method Mine: 1 unexpected \(memory, …\)"):
        main.load(str(path))
    fewer = tmp_path / "one"
    for i in range(3):
        picture(fewer / f"{i}.png", seed=i)
    _, _, err = cli("--imports", "my_method", "--predict", path, "--dataset", "image_folder", "--data-root", fewer)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "does not fit the method Mine: 1 of another shape or type (memory is (1797, 2) there and (3, 2) here" in line
    assert line.endswith("keep such state in `get_extra_state`, as docs/extend.md shows")


def test_a_registry_of_another_kind_says_what_to_do_about_a_taken_name() -> None:
    registry = Registry("fruit")
    registry.register("apple", object)
    with pytest.raises(ValueError, match="the fruit 'apple' is registered already; choose another name"):
        registry.register("apple", object)


def test_the_recipes_are_those_that_the_author_gives() -> None:
    transforms: Any = resolve(*DIGITS).of(TransformSettings)
    recipes = (original(transforms), perturbed(transforms))
    assert method_checks.checked_recipes(Restless(), iter(recipes)) == recipes
