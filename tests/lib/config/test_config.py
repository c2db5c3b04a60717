from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import DIGITS, ROOT, resolve

from imc_swav import IMCSwAVSettings, sinkhorn, swapped_prediction_loss
from lib.config import command_line, config, sections
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section
from lib.contracts import Recipe
from lib.datasets import DataSettings
from lib.errors import UserError
from lib.machine.devices import DeviceSettings
from lib.networks import NetworkSettings
from lib.networks.convnet import ConvNet
from lib.scoring.evaluation import EvaluationSettings
from lib.serving.model import Model
from lib.session import SessionSettings
from lib.training.optimizers import Adam, OptimizerSettings
from lib.training.schedules import ScheduleSettings, Step
from lib.training.trainer import TrainerSettings
from lib.transforms import TransformSettings
from pica import PICA, PICASettings, PUILoss


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


AUTHORS = """
# every key of the PICA authors' files, as they write them
session_root: ./sessions
debug: False
gpus: 0
max_epochs: 200
display_freq: 20
batch_size: 256
num_workers: 4
data_nrepeat: 3
pica_lamda: 2.0
network: resnet34
net_cin: 3
net_cout: 10
net_sobel: True
net_heads: [70, 20]
net_avgpool_size: 3
dataset: cifar100
data_root: ./data/cifar100
transform: default
tfm_size: (32, 32)
tfm_resize: 40
tfm_scale: (0.2, 1.)
tfm_ratio: (3./4., 4./3.)
tfm_colorjitter: (0.4, 0.4, 0.4, 0.4)
tfm_random_grayscale: 0.2
tfm_random_hflip: 0.5
tfm_means: (0.5071, 0.4866, 0.4409)
tfm_stds: (0.2009, 0.1984, 0.2023)
optimizer: adam
optim_weight_decay: 0.
optim_beta: (0.9, 0.999)
optim_eps: 1e-8
optim_amsgrad: False
lr_policy: fixed
base_lr: 1e-4
log_file: True
log_tfb: True
"""


def test_files_in_the_authors_spelling_load(tmp_path: Path) -> None:
    found = resolve("--cfgs", write(tmp_path / "authors.yaml", AUTHORS))
    assert found.notes == ("net_cout: accepted, and without effect",)
    transforms = found.of(TransformSettings)
    assert transforms.tfm_ratio == (0.75, 4 / 3) and transforms.tfm_means == (0.5071, 0.4866, 0.4409)
    assert found.of(ScheduleSettings).base_lr == 1e-4 and found.of(Adam.Settings).optim_eps == 1e-8
    assert found.of(OptimizerSettings).optim_weight_decay == 0.0
    assert found.of(PICASettings).net_heads == (70, 20)


FLOATS = ("0.5", "'0.5'", "1./2.", "1/2", ".5", "5e-1", "'5e-1'")
INTEGERS = ("4", "4.", "'4'", "8/2", "'4.0'", "2 + 2")
SIDES = ("96", "96.", "(96, 96)", "'(96, 96)'", "[96, 96]", "96, 96", "(96., 96)", "192/2")
TRUE = ("True", "true", "'True'", "'true'", "yes")
FALSE = ("False", "false", "'False'")
NONE = ("None", "none", "'None'", "null", "~", "")
TRIPLES = ("(0.5, 1/2, .5)", "'(0.5, 0.5, 0.5)'", "[0.5, 1./2., 5e-1]", "0.5, 0.5, 0.5")
RATES = ("[(10, 1e-1), (20, 1e-2)]", "'((10, 1e-1), (20., .01))'", "(10, 1/10), (20, 1./100)", "[[10, 1e-1], [20, 1e-2]]",
         "\n  - (10, 1e-1)\n  - (20, 1e-2)", "\n  - [10, '0.1']\n  - '(20, 0.01)'")  # fmt: skip

# Every key that docs/migrate.md lists for PICA: what else the file says, (spellings, value) ...
KEYS: dict[str, tuple[str, list[tuple[Sequence[str], object]]]] = {
    "session": ("", [(("mine", "'mine'"), "mine"), (("7",), "7"), (NONE, None)]),
    "session_root": ("", [(("sessions", "'sessions'"), "sessions")]),
    "seed": ("", [(INTEGERS, 4), (NONE, None)]),
    "brief": ("", [(TRUE, True), (FALSE, False)]),
    "debug": ("", [(TRUE, True), (FALSE, False)]),
    "gpus": ("", [(("0", "'0'"), "0"), (("0,1", "'0,1'"), "0,1"), (("''",), "")]),
    "max_epochs": ("", [(INTEGERS, 4)]),
    "display_freq": ("", [(INTEGERS, 4)]),
    "batch_size": ("", [(INTEGERS, 4)]),
    "num_workers": ("", [(INTEGERS, 4)]),
    "data_nrepeat": ("", [(INTEGERS, 4)]),
    "pica_lamda": ("", [(FLOATS, 0.5)]),
    "network": ("", [(("resnet34", "'resnet34'"), "resnet34")]),
    "net_cin": ("", [(("3", "3.", "'3'", "6/2"), 3)]),
    "net_sobel": ("", [(TRUE, True), (FALSE, False)]),
    "net_heads": ("", [(("[70, 10]", "(70, 10)", "'[70., 10]'", "70, 10", "\n  - 70\n  - '10'", "(7*10, 20/2)"), (70, 10))]),
    "net_avgpool_size": ("", [(("7", "7.", "'7'", "(7, 7)"), 7)]),
    "net_freeze": ("", [(("[stem, stages]", "('stem', 'stages')", "\n  - stem\n  - 'stages'"), ("stem", "stages")),
                        (("(stem|stages)",), ("(stem|stages)",)), ((*NONE, "[]"), None)]),
    "net_cout": ("", [(INTEGERS, 4)]),
    "dataset": ("", [(("stl10", "'stl10'"), "stl10")]),
    "data_root": ("", [(("./data", "'./data'"), "./data")]),
    "transform": ("", [(("default", "'default'"), "default")]),
    "tfm_size": ("", [(SIDES, 96)]),
    "tfm_resize": ("tfm_size: 8", [(SIDES, 96)]),
    "tfm_scale": ("", [(("(0.2, 1.)", "'(.2, 1)'", "[1./5., 1]", "0.2, 1"), (0.2, 1.0)), (NONE, None)]),
    "tfm_ratio": ("", [(("(3./4., 4./3.)", "'(3/4, 4/3)'", "[3./4., 4./3.]", "3./4., 4./3."), (3 / 4, 4 / 3))]),
    "tfm_colorjitter": ("", [(("(0.4, 0.4, 0.4, 0.4)", "[.4, 2./5., '0.4', 4e-1]"), (0.4, 0.4, 0.4, 0.4)), (NONE, None)]),
    "tfm_random_grayscale": ("", [(FLOATS, 0.5), (("0", "0."), 0.0)]),
    "tfm_random_hflip": ("", [(FLOATS, 0.5), (("1", "1."), 1.0)]),
    "tfm_means": ("", [(TRIPLES, (0.5, 0.5, 0.5)), (NONE, None)]),
    "tfm_stds": ("", [(TRIPLES, (0.5, 0.5, 0.5)), (NONE, None)]),
    "optimizer": ("", [(("adam", "'adam'"), "adam"), (("sgd",), "sgd"), (("rmsprop",), "rmsprop")]),
    "optim_weight_decay": ("", [(FLOATS, 0.5), (("0", "0.", "'0.'"), 0.0)]),
    "optim_beta": ("optimizer: adam", [(("(0.9, 0.999)", "[.9, '0.999']", "9./10, 1 - 1e-3"), (0.9, 0.999))]),
    "optim_eps": ("optimizer: adam", [(("1e-8", "'1e-8'", "1.e-8", "1/1e8"), 1e-8)]),
    "optim_amsgrad": ("optimizer: adam", [(TRUE, True), (FALSE, False)]),
    "optim_momentum": ("optimizer: sgd", [(FLOATS, 0.5), (("0",), 0.0)]),
    "optim_dampening": ("optimizer: sgd", [(FLOATS, 0.5)]),
    "optim_nesterov": ("optimizer: sgd", [(TRUE, True), (FALSE, False)]),
    "optim_alpha": ("optimizer: rmsprop", [(FLOATS, 0.5)]),
    "optim_centered": ("optimizer: rmsprop", [(TRUE, True), (FALSE, False)]),
    "lr_policy": ("", [(("fixed", "'fixed'"), "fixed"), (("step",), "step"), (("multistep",), "multistep")]),
    "base_lr": ("", [(FLOATS, 0.5), (("1e-4", "'1e-4'", "1.e-4", "1E-4", "0.0001"), 1e-4)]),
    "lr_decay_step": ("lr_policy: step", [(INTEGERS, 4)]),
    "lr_decay_rate": ("lr_policy: step", [(FLOATS, 0.5)]),
    "lr_decay_offset": ("lr_policy: step", [(INTEGERS, 4)]),
    "lr_schedule": ("lr_policy: multistep", [(RATES, ((10, 0.1), (20, 0.01))), (("(10, 1e-1)",), ((10, 0.1),)),
                                             (("rates.txt", "'rates.txt'"), "rates.txt")]),
    "resume": ("", [(("a/latest.ckpt",), "a/latest.ckpt"), (NONE, None)]),
    "restart": ("", [(TRUE, True), (FALSE, False)]),
    "log_file": ("", [(TRUE, True), (FALSE, False)]),
    "log_tfb": ("", [(TRUE, True), (FALSE, False)]),
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_authors_loads_in_every_spelling(key: str, tmp_path: Path) -> None:
    companion, groups = KEYS[key]
    for spelling, value in [(spelling, value) for spellings, value in groups for spelling in spellings]:
        made = resolve("--cfgs", write(tmp_path / "theirs.yaml", f"{companion}\n{key}: {spelling}\n"))
        (found,) = [getattr(made.of(s), key) for s in made.sections if key in sections.fields_of(s)]
        assert found == value and type(found) is type(value), spelling


def test_every_key_of_the_guide_is_tried() -> None:
    guide = (ROOT / "docs" / "migrate.md").read_text().partition("### What a session holds")[0]
    listed = [row.split("|")[1] for row in guide.splitlines() if row.startswith("| `")]
    names = set(re.findall(r"`(\w+)`", " ".join(re.sub(r"\(.*?\)", "", row) for row in listed)))
    assert names and names - {"cfgs"} <= KEYS.keys()


def test_files_in_the_authors_spelling_run_dry(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = cli(
        "--cfgs", write(tmp_path / "authors.yaml", AUTHORS), "--gpus", "", "--data-root", tmp_path, "--dry-run"
    )
    assert status == 0 and "60,000 images, 235 steps of 256 originals and 768 perturbed" in " ".join(out.split()), err
    assert err == "warning: net_cout: accepted, and without effect\n"


def test_later_files_override_earlier_ones_and_flags_override_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", "max_epochs: 1\nbatch_size: 1\nbase_lr: 1e-1")
    two = write(tmp_path / "two.yaml", "batch_size: 2\nbase_lr: 2e-1")
    found = resolve("--cfgs", one, two, "--base-lr", "3e-1")
    assert found.of(TrainerSettings).max_epochs == 1
    assert found.of(DataSettings).batch_size == 2
    assert found.of(ScheduleSettings).base_lr == 0.3


def test_flags_take_both_spellings_and_no_abbreviation() -> None:
    assert resolve("--max_epochs", 3).of(TrainerSettings).max_epochs == 3
    assert resolve("--max-epochs=3").of(TrainerSettings).max_epochs == 3
    with pytest.raises(UserError, match=r"unknown flag --max-epoch; did you mean '--max-epochs'"):
        resolve("--max-epoch", 3)


def test_flags_without_a_value() -> None:
    found = resolve("--brief", "--optimizer", "adam", "--optim-amsgrad", "--net-sobel", "True")
    assert found.of(Adam.Settings).optim_amsgrad and found.of(PICASettings).net_sobel


def test_a_chosen_components_settings_join_in() -> None:
    assert resolve("--network", "convnet", "--net-width", 8).of(ConvNet.Settings).net_width == 8
    found = resolve("--lr-policy", "step", "--lr-decay-step", 5)
    assert found.of(Step.Settings).lr_decay_step == 5


def test_a_setting_of_an_idle_component_is_noted() -> None:
    found = resolve("--network", "resnet18", "--net-width", 8)
    assert len(found.notes) == 1 and "net_width" in found.notes[0] and "convnet" in found.notes[0]


@pytest.mark.parametrize("later", ["file", "flag"])
def test_what_a_later_file_supersedes_is_not_remarked_upon(later: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("network: convnet\nnet_width: 8\n")
    (tmp_path / "other.yaml").write_text("network: resnet18\n")
    words = ["--cfgs", tmp_path / "base.yaml", tmp_path / "other.yaml"]
    if later == "flag":
        words = [*words[:2], "--network", "resnet18"]
    assert not resolve(*words).notes
    swapped = resolve(
        "--cfgs", tmp_path / "other.yaml", tmp_path / "base.yaml", "--network", "resnet18", "--net-width", 4
    )
    assert len(swapped.notes) == 1 and "net_width" in swapped.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch_sizes: 3", r"batch_sizes.*bad\.yaml.*did you mean 'batch_size'"),
        ("batch_size: 2.7", r"batch_size in .*bad\.yaml: 2\.7 is not an integer"),
        ("batch_size: 0", "below 1"),
        ("debug: 'no'", "not true or false"),
        ("tfm_size: (32, 40)", r"tfm_size in .*bad\.yaml: the sides 32 and 40 differ"),
        ("lr_policy: multistep\nlr_schedule: '[(9, -)]'", "lr_schedule in .*bad.yaml: .* is not a number"),
        ("tfm_ratio: (3/4, 4/3, 5)", "2 values are wanted"),
        ("tfm_ratio: (__import__('os'), 1)", "not a number"),
        (
            "dataset: digit",
            "unknown data set 'digit'.*did you mean 'digits'.; if a module of yours registers it, add --imports",
        ),
        (
            "network: my_net",
            "network in .*unknown network 'my_net'.*; if a module of yours registers it, add --imports MODULE$",
        ),
        ("network: [1]", "not a text"),
        ("- a\n- b", "holds a list, not a mapping"),
        ("just words", "holds a str, not a mapping"),
        ("a: [1", r"line \d+ is not valid YAML"),
        ("a: 1\na: 2", "given twice"),
        ("seed: 1\nnet_width: 2\ndebug: true\nnet-width: 3", "line 4 .*'net_width' is given twice, before in line 2"),
        ('cache: "a\\0b"', r"cache in .*bad\.yaml: .* NUL"),
        ('copy_to: "a\\0b"', "NUL"),
        ('dataset: image_folder\nlabels: "a\\0b"', "NUL"),
        ('include: "a\\0b"', "a file or a list of files"),
        ("tfm_size: 100000", "above 4096"),
        ("tfm_resize: 100000", "above 4096"),
        ("tfm_working_size: 100000", "above 4096"),
        ("data_nrepeat: 9999999999999999999999", "above 1000"),
        ("batch_size: 9999999999999999999999", "above 2147483647"),
        ("1: 2", "no name of a setting"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("net_freeze: '('", "no regular expression"),
        ("seeds: 4-0", "neither a seed nor a range"),
    ],
)
def test_mistakes_in_a_file_are_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        resolve("--cfgs", write(tmp_path / "bad.yaml", content))
    assert "\n" not in str(raised.value)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.yaml: No such file"):
        resolve("--cfgs", tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a text file"):
        resolve("--cfgs", tmp_path / "binary.yaml")


def test_a_fifo_is_no_file_of_settings_and_the_pipe_of_a_shell_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo: it is no regular file; check the path"):
        resolve("--cfgs", tmp_path / "fifo")
    reading, writing = os.pipe()
    os.write(writing, b"max_epochs: 3")
    os.close(writing)
    assert resolve("--cfgs", ROOT / "configs/digits.yaml", f"/dev/fd/{reading}").as_dict()["max_epochs"] == 3
    os.close(reading)


@pytest.mark.parametrize("words", [("stray",), ("--max-epochs",), ("--gpus",), ("--max-epochs", "1", "2")])
def test_mistakes_on_the_command_line_are_named(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="command line"):
        resolve(*words)


@pytest.mark.parametrize("extra", [(), ("--seeds", "0-4"), ("--lr-policy", "multistep", "--lr-schedule", "((3, .1), (5, '-'))"),
                                   ("--net-freeze", "layers.0", r"layers\.1"), ("--train-splits", "train", "train+test")])  # fmt: skip
def test_the_dump_resolves_to_an_equal_configuration(extra: tuple[str, ...], tmp_path: Path) -> None:
    made = resolve(*DIGITS, *extra, "--session", "mine", "--debug")
    again = resolve("--cfgs", write(tmp_path / "config.yaml", made.dump()))
    assert again == made and again.dump() == made.dump() and not again.notes
    assert isinstance(yaml.safe_load(made.dump()), dict)
    assert again != made.replace(max_epochs=99)
    with pytest.raises(TypeError, match="max_epoch$"):
        made.replace(max_epoch=99)


STORED = {
    "gpus": "0",
    "session_root": "/elsewhere",
    "network": "convnet",
    "net_width": 8,
    "net_heads": [14, 2],
    "max_epochs": 7,
    "method": "pica",
}


def with_checkpoint(*words: object) -> Config:
    import main

    raw = command_line.collect([str(word) for word in words], main.SECTIONS)
    return config.resolve(raw, main.SECTIONS, STORED)


def test_a_checkpoint_brings_its_own_network_and_files_yield_to_it(tmp_path: Path) -> None:
    found = with_checkpoint("--cfgs", write(tmp_path / "f.yaml", "network: resnet34\nmax_epochs: 9\nnet_heads: [3, 4]"))
    assert found.of(NetworkSettings).network == "convnet" and found.of(ConvNet.Settings).net_width == 8
    assert found.of(PICASettings).net_heads == (14, 2)
    assert found.of(TrainerSettings).max_epochs == 9  # it is not bound to this one
    assert with_checkpoint().of(TrainerSettings).max_epochs == 7


def test_a_checkpoint_does_not_say_where_and_how_to_run() -> None:
    assert (
        with_checkpoint().of(DeviceSettings).gpus == "" and with_checkpoint("--gpus", 1).of(DeviceSettings).gpus == "1"
    )
    assert with_checkpoint().of(SessionSettings).session_root == "./sessions"


def test_a_flag_that_contradicts_the_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="--network resnet34 contradicts the checkpoint.*network convnet"):
        with_checkpoint("--network", "resnet34")
    with pytest.raises(UserError, match="--net-heads 14 3 contradicts"):
        with_checkpoint("--net-heads", 14, 3)
    assert with_checkpoint("--net-heads", 14, 2).of(PICASettings).net_heads == (14, 2)


def test_imports_are_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my_sets_0.py", "from lib import datasets\n@datasets.register('mine_0')\nclass Mine: pass\n")
    found = resolve("--imports", "my_sets_0", "--dataset", "mine_0")
    assert found.of(Command).imports == ("my_sets_0",)
    write(tmp_path / "my_broken_0.py", "import lib\nnonsense\n")
    for module, message in (("absent_0", "no module named 'absent_0'"), ("my_broken_0", r"NameError.*line 2")):
        with pytest.raises(UserError, match=message):
            resolve("--imports", module)


def test_every_setting_has_a_help_text_and_one_owner() -> None:
    import main

    owners: dict[str, type] = {}
    for section, registry, _ in sections.all_sections(main.SECTIONS):
        for name, field in sections.fields_of(section).items():
            assert field.metadata["help"], name
            if registry is None:
                assert owners.setdefault(name, section) is section


@pytest.mark.parametrize(
    ("function", "argument", "section", "name"),
    [
        (PUILoss, "lamda", PICASettings, "pica_lamda"),
        (PICA, "lamda", PICASettings, "pica_lamda"),
        (PICA, "idle_heads", PICASettings, "pica_idle_heads"),
        (PICA, "repeat", PICASettings, "data_nrepeat"),
        (sinkhorn, "eps", IMCSwAVSettings, "eps"),
        (sinkhorn, "iterations", IMCSwAVSettings, "sinkhorn_iterations"),
        (swapped_prediction_loss, "tau", IMCSwAVSettings, "tau"),
        (swapped_prediction_loss, "eps", IMCSwAVSettings, "eps"),
        (swapped_prediction_loss, "iterations", IMCSwAVSettings, "sinkhorn_iterations"),
        (Model.predict, "batch_size", EvaluationSettings, "eval_batch_size"),
        (Recipe, "ratio", TransformSettings, "tfm_ratio"),
        (Recipe, "jitter_probability", TransformSettings, "tfm_colorjitter_probability"),
        (Recipe, "grayscale", TransformSettings, "tfm_random_grayscale"),
        (Recipe, "flip", TransformSettings, "tfm_random_hflip"),
    ],
)
def test_a_default_in_python_is_that_of_the_setting(
    function: Callable[..., object], argument: str, section: type[Section], name: str
) -> None:
    default = sections.fields_of(section)[name].default
    assert inspect.signature(function).parameters[argument].default == default


def write_all(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_file_overrides_what_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(
        tmp_path,
        mine="max_epochs: 3\ninclude: [below/first.yaml, below/second.yaml]",
        below__first="max_epochs: 1\nbatch_size: 7\nseed: 1",
        below__second="include: third.yaml\nbatch_size: 8",
        below__third="batch_size: 9\neval_every: 5",
        last="seed: 2",
    )
    monkeypatch.chdir(tmp_path.parent)  # files are relative to the one that names them
    found = resolve("--cfgs", tmp_path / "mine.yaml", tmp_path / "last.yaml", "--num-clusters", 4).as_dict()
    assert [found[name] for name in ("max_epochs", "batch_size", "eval_every", "seed")] == [3, 8, 5, 2]
    assert "include" not in found


def test_a_mistake_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    write_all(tmp_path, mine="include: other.yaml", other="batch_size: many")
    with pytest.raises(UserError, match=r"batch_size in .*other\.yaml: 'many'"):
        resolve("--cfgs", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("include: mine.yaml", r"mine\.yaml includes .*mine\.yaml: files cannot include each other; remove one"),
        ("include: round.yaml", r"mine\.yaml includes .*round\.yaml includes .*mine\.yaml: files cannot"),
        ("include: nowhere.yaml", r"cannot read .*nowhere\.yaml: No such file.*\(`include` in .*mine\.yaml\)"),
        ("include: 3", r"include in .*mine\.yaml is 3; a file or a list of files is wanted"),
        ("include: [a.yaml, 3]", r"a file or a list of files is wanted"),
        ("include:", r"a file or a list of files is wanted"),
    ],
)
def test_mistakes_of_include(text: str, problem: str, tmp_path: Path) -> None:
    write_all(tmp_path, mine=text, round="include: mine.yaml")
    with pytest.raises(UserError, match=problem):
        resolve("--cfgs", tmp_path / "mine.yaml")


def test_a_file_may_be_included_twice(tmp_path: Path) -> None:
    write_all(tmp_path, one="include: data.yaml", other="include: data.yaml", data="batch_size: 8")
    assert resolve("--cfgs", tmp_path / "one.yaml", tmp_path / "other.yaml").as_dict()["batch_size"] == 8
