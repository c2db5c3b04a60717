"""The commands and examples of README.md and docs/, run as they are written, but shortened."""

from __future__ import annotations

import ast
import importlib
import logging
import math
import os
import pkgutil
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, picture, resolve
from runs import same
from torch import nn

import main
from lib import contracts, datasets, networks
from lib.checkpoints import checkpoint
from lib.config.yaml_files import load_yaml
from lib.errors import ENDS_WITH_PARENT, SIGNALS
from lib.methods import method
from lib.methods.batches import ViewBatch
from lib.methods.method import ViewMethod
from lib.report.__main__ import main as report
from pica.method import PICA

DOCUMENTS = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.exists()
]
ELSEWHERE = {
    r"make demo$": "it makes an environment of its own",
    r"python3 -m venv \.venv ": "as above",
    r"pip install ": "it fetches packages, which requirements-test.txt has",
}
DRY = {
    r"--dry-run|--list": "as it is written",
    r"configs/(imc_swav/)?(cifar|stl10|imagenet|tiny_)": "the paper's pictures are not there",
    r"--net-weights default|/pretrained\.yaml(?!.*--net-weights none)": "the weights would be downloaded",
    r"--seeds 0-14|--num-clusters \d+ \d": "many processes; tests/lib/runs/test_several_runs.py has few, and so has README.md",
}  # understood, and no more
STEPS = ("--max-steps", "2", "--num-workers", "0")
TINY = {
    "digits.yaml": ("--train-splits", "train", "--test-splits", "test", "--tfm-working-size", "none", "--tfm-size", "8",
                    "--tfm-resize", "10", "--eval-every", "0", "--baseline", "none"),
    "image_folder.yaml": ("--tfm-size", "32", "--tfm-working-size", "32"),
    "pretrained.yaml": ("--tfm-size", "32"),
}  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(path: Path) -> list[str]:
    lines = "".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines if line.split("#")[0].strip()]


def shortened(command: str) -> list[str]:
    """The words of a command line of main.py that is run, with what makes it short behind them."""
    words = shlex.split(command)
    extra = ["--eval-sample", "20"]
    if "--evaluate" in words or "--predict" in words:
        return [*words, *extra]
    extra += STEPS
    for name, tiny in TINY.items():
        extra += tiny if any(word.endswith(f"/{name}") for word in words) else ()
    if "--cfgs" in words and "--network" not in words:
        extra += ["--network", "convnet"]
    if "--network convnet" in " ".join([*words, *extra]):
        extra += ["--net-width", "4"]
    if "--resume" in words and "auto" not in words and "--restart" not in words:
        extra[extra.index("--max-steps") + 1] = "3"  # so that there is something to go on with
    if "--seeds" in words:
        extra += ["--seeds", "0"]
    return [*words, *extra]


class Workplace:
    """A folder with what the documents speak of."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        for name in ("configs", "examples", "pretrained"):
            (folder / name).symlink_to(ROOT / name)
        for i in range(24):
            picture(folder / "photos" / f"{i % 2}" / f"{i}.png", seed=i)
        (folder / "pictures").symlink_to(folder / "photos")
        for i, name in enumerate(("a.jpg", "b.jpg")):
            picture(folder / name, seed=i)

    def session(self, number: int) -> str:
        """One with a checkpoint, 0 the newest; where there are not so many, they are made."""
        found = [path.parent.parent for path in self.folder.glob("sessions/*/checkpoint/latest.ckpt")]
        if len(found) <= number:
            self.main(shortened("--cfgs configs/base.yaml configs/digits.yaml"))
            return self.session(number)
        return str(sorted(found, key=lambda path: path.stat().st_mtime_ns)[-1 - number].relative_to(self.folder))

    def filled(self, text: str) -> str:
        """With true names in the place of those that stand for something."""
        for name, number in (("NAME", 0), ("ONE", 0), ("OTHER", 1)):
            if f"sessions/{name}" in text:
                text = text.replace(f"sessions/{name}", self.session(number))
        return text.replace("~/", f"{self.folder}/")

    def main(self, words: list[str]) -> None:
        done = self._scored()
        try:
            status = main.main(words)
        finally:
            logging.disable(logging.NOTSET)  # `--processes` is silent itself
        assert status == 0, f"{shlex.join(words)}: {self._capsys.readouterr().err}"
        assert "--dry-run" in words or "--list" in words or self._scored() > done, f"{shlex.join(words)} left no scores"

    def _scored(self) -> int:
        return max((path.stat().st_mtime_ns for path in self.folder.glob("sessions/*/**/scores.json")), default=0)

    def run(self, command: str) -> None:
        """Run a command line of a document, or see that it is understood."""
        if "theirs.ckpt" in command:
            theirs(self.folder / "theirs.ckpt")
        program, _, words = self.filled(command).partition("main.py ")
        if command.startswith("python -m lib.report "):
            assert report(shlex.split(program)[3:]) == 0, self._capsys.readouterr().err
        elif re.fullmatch(r"python ", program) and not dry(command):
            self.main(shortened(words))
        elif re.fullmatch(r"python |torchrun .*", program):
            # No GPUs, and for torchrun no other machines, are asked of who tests.
            words = words if torch.cuda.is_available() else re.sub(r"--gpus \S+", "", words)
            self.main([*shlex.split(words), *([] if "--list" in words else ["--dry-run"])])
        else:
            pytest.fail(f"nothing runs this command, and no reason is given: {command}")


def dry(command: str) -> bool:
    return "--gpus" in command or any(re.search(pattern, command) for pattern in DRY)


def theirs(path: Path) -> None:
    """A checkpoint with the names of PICA's authors."""
    config = resolve("--network", "resnet18", "--net-sobel", "true", "--net-stem", "small-pool-padded")
    net = {}
    for key, value in PICA(PICA.build_network(config), (70, 20)).state_dict().items():
        for ours, name in (
            ("network.0.grey.", "sobel.0."),
            ("network.0.edges.", "sobel.1."),
            ("network.1.stem.", "layer1."),
        ):
            key = key.replace(ours, name)
        if key.endswith("_extra_state"):
            continue
        key = re.sub(r"network\.1\.stages\.(\d)", lambda found: f"layer{int(found[1]) + 2}", key)
        net[re.sub(r"heads\.(\d)\.", r"heads.\1.0.", key)] = value
    torch.save({"net": net, "optimizer": {}, "acc": 0.5, "epoch": 1}, path)


def fashion_mnist(root: Path) -> None:
    """40 and 20 pictures of noise in the official layout, whose presence makes a download needless."""
    raw = root / "FashionMNIST" / "raw"
    random = np.random.default_rng(0)
    raw.mkdir(parents=True)
    for name, size in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, size, 28, 28) + images.tobytes())
        labels = random.integers(0, 10, size, dtype=np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, size) + labels.tobytes())


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Workplace]:
    """What is imported and registered there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("OMP_NUM_THREADS", "1"), ("TORCH_CPP_LOG_LEVEL", "ERROR"), (ENDS_WITH_PARENT, "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for known in (datasets._registry, networks._registry, method._registry):
        monkeypatch.setattr(known, "_components", dict(known._components))
    before = set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield Workplace(tmp_path, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "examples")):
            del sys.modules[name]


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if commands(path)], ids=lambda path: path.name)
def test_the_commands_and_examples_of_a_document_run(document: Path, workplace: Workplace) -> None:
    text = document.read_text(encoding="utf-8")
    names = re.findall(r"`(my_\w+\.py)`:\n\n```python", text)
    code = blocks(document, "python")
    for name, own in zip(names, code, strict=False):
        (workplace.folder / name).write_text(own, encoding="utf-8")
    if "my_fashion.py" in names:
        fashion_mnist(workplace.folder / "data")
    readme = commands(DOCUMENTS[0]) if document != DOCUMENTS[0] else []  # what it has too is run there
    for command in commands(document):
        if command not in readme and not any(re.match(pattern, command) for pattern in ELSEWHERE):
            workplace.run(command)
    for example in code[len(names) :]:
        if "model.onnx" in example:
            workplace.run("python main.py --evaluate sessions/NAME/checkpoint/latest.ckpt --export model.onnx")
        exec(compile(workplace.filled(example), document.name, "exec"), {})


def test_what_is_in_no_list_of_this_file_is_missed(workplace: Workplace) -> None:
    with pytest.raises(pytest.fail.Exception, match="no reason is given: bash train.sh"):
        workplace.run("bash train.sh")
    with pytest.raises(AssertionError, match="unknown flag --clusters"):
        workplace.run("python main.py --cfgs configs/base.yaml configs/digits.yaml --clusters 3")


LINES = {"my_iic": 30, "my_scan": 35}  # of a method, at most


def test_components_of_extend_md_are_short() -> None:
    code = [block.splitlines() for block in blocks(ROOT / "docs/extend.md", "python")]
    lines = [sum(bool(line.strip()) for line in block) for block in code]
    assert max(lines[:3]) <= 20 and len(lines) == 3 + len(LINES)
    for most, count, block in zip(LINES.values(), lines[3:], code[3:], strict=True):
        assert count <= most and max(map(len, block)) <= 120 and not any(";" in line.split('"')[0] for line in block)
        assert not any("pica" in line or "imc_swav" in line for line in block)


def own_method(workplace: Workplace, name: str) -> tuple[list[str], Any]:
    """The command and the module of a method of extend.md."""
    title = name.removeprefix("my_")
    (code,) = [block for block in blocks(ROOT / "docs/extend.md", "python") if f'@register("{title}")' in block]
    (workplace.folder / f"{name}.py").write_text(code, encoding="utf-8")
    (command,) = [line for line in commands(ROOT / "docs/extend.md") if f"--method {title}" in line]
    sys.path.insert(0, str(workplace.folder))
    return shortened(command.partition("main.py ")[2]), importlib.import_module(name)


def loss_of(known: Any, *views: torch.Tensor) -> float:
    return float(known(ViewBatch(torch.arange(len(views[0])), list(views), counts=(len(views[0]),)))["loss"])


def test_the_objective_of_iic_is_the_mutual_information(workplace: Workplace) -> None:
    _, module = own_method(workplace, "my_iic")
    network = nn.Identity()
    network.feature_dim = 4
    known = module.IIC(network, 4, module.IIC.Settings())
    known.classify = lambda features: features
    sure = torch.eye(4).repeat(3, 1)
    unsure = torch.full((12, 4), 0.25)
    assert loss_of(known, sure, sure) == pytest.approx(-math.log(4), abs=1e-5)
    assert loss_of(known, sure, unsure) == pytest.approx(0, abs=1e-5)
    # Of two binary variables that agree with probability 3/4: log 2 − H(1/4).
    one = torch.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    other = torch.eye(2)[[0, 0, 0, 1, 1, 1, 1, 0]]
    expected = -(math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert loss_of(known, one, other) == pytest.approx(expected, abs=1e-5)


def test_the_objective_of_scan_is_agreement_and_entropy(workplace: Workplace) -> None:
    _, module = own_method(workplace, "my_scan")
    network = nn.Identity()
    network.feature_dim = 4
    known = module.SCAN(network, 4, module.SCAN.Settings())
    known.classify = lambda features: features
    sure = torch.eye(4).repeat(3, 1)
    unsure = torch.full((12, 4), 0.25)
    assert loss_of(known, sure, sure) == pytest.approx(-5 * math.log(4), abs=1e-4)
    assert loss_of(known, unsure, unsure) == pytest.approx(math.log(4) - 5 * math.log(4), abs=1e-4)


@pytest.mark.parametrize("flags", [[], ["--net-freeze", ".*"]], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", LINES)
def test_a_method_of_extend_md_goes_on_where_it_stopped(name: str, flags: list[str], workplace: Workplace) -> None:
    words, _ = own_method(workplace, name)
    words += ["--train-splits", "train", "--test-splits", "test", "--tfm-size", "8", "--seed", "3", *flags]
    workplace.main([*words, "--session", "whole", "--max-steps", "5"])
    workplace.main([*words, "--session", "parts"])
    (left,) = workplace.folder.glob("sessions/parts/checkpoint/latest.ckpt")
    workplace.main(["--imports", name, "--resume", str(left), "--max-steps", "5"])
    whole, parts = (
        checkpoint.load(workplace.folder / f"sessions/{name}/checkpoint/latest.ckpt") for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 5 and same(whole["method"], parts["method"])
    assert ("backbone" in whole) == bool(flags)
    workplace.main(["--imports", name, "--evaluate", str(left)])


def started(workplace: Workplace, words: list[str], session: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "main.py"), *words, "--session", session, "--resume", "auto"]
    return subprocess.Popen(command, cwd=workplace.folder, text=True, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("my_iic", 1),
        ("my_scan", 2),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in (("my_iic", 2), ("my_scan", 1))),
    ],
)
def test_a_method_of_extend_md_is_killed_and_resumed_with_an_unreadable_image(
    name: str, count: int, workplace: Workplace
) -> None:
    words, _ = own_method(workplace, name)
    broken = workplace.folder / "photos/0/broken.png"
    broken.write_bytes(picture(broken).read_bytes()[:200])
    words += ["--dataset", "image_folder", "--data-root", "photos", "--on-bad-image", "skip", "--net-cin", "3"]
    words += ["--tfm-size", "8", "--tfm-resize", "9", "--batch-size", "8", "--seed", "3", "--num-clusters", "2"]
    words += ["--max-epochs", "40", "--max-steps", "120", "--save-every-epochs", "10", "--eval-every", "0"]
    words += ["--feature-neighbours", "3", "--baseline", "none", "--processes", str(count), "--threads", "1"]
    whole = started(workplace, words, "whole")
    _, err = whole.communicate()
    assert whole.returncode == 0 and "1 picture could not be read" in err, err
    killed = started(workplace, words, "killed")
    folder = workplace.folder / "sessions/killed"
    while not (folder / "checkpoint/latest.ckpt").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "scores.json").exists()
    resumed = started(workplace, words, "killed")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    ours, theirs = (
        checkpoint.load(workplace.folder / f"sessions/{session}/checkpoint/latest.ckpt")
        for session in ("whole", "killed")
    )
    assert ours["step"] == theirs["step"] == 120 and same(ours["method"], theirs["method"])
    if name == "my_scan":
        tables = [np.load(workplace.folder / f"sessions/{session}/neighbours.npy") for session in ("whole", "killed")]
        assert (tables[0] == tables[1]).all() and tables[0].shape == (25, 3)
        assert (tables[0] == -1).all(axis=1).sum() == 1, "the unreadable image has no neighbours, and is none"


def test_the_page_of_contracts_names_every_part() -> None:
    text = (ROOT / "docs/contracts.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    classes = [value for value in vars(contracts).values() if getattr(value, "__module__", "") == contracts.__name__]
    for contract in (*classes, datasets.Splits, ViewMethod):
        parts = {name for name in (*vars(contract), *vars(contract).get("__annotations__", {})) if name[0] != "_"}
        named = set(re.findall(r"^\| `(\w+)", sections[contract.__name__], flags=re.MULTILINE))
        inherited = {name for base in contract.__mro__[1:] for name in vars(base)}
        assert parts - inherited <= named | {"len"}, f"{contract.__name__}: {parts - inherited - named}"
        assert named - {"len"} <= parts, f"{contract.__name__}: {named - parts}"


def test_sentences_of_extend_md_are_short() -> None:
    text = re.sub(r"```.*?```", "", (ROOT / "docs/extend.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join("" if line.startswith(("#", "|")) else line for line in text.splitlines())
    for sentence in re.split(r"(?<=[.:?])\s+|\n\n", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)):
        assert len(sentence.split()) <= 22, sentence


@pytest.mark.parametrize("document", ["README.md", "docs/speed.md", "docs/parallel.md"])
def test_figures_of_speed_are_those_that_the_benchmarks_left(document: str) -> None:
    results = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("*.md")]
    if any("--short" in text for text in results):
        pytest.skip("`make bench` has written others")
    rows = [line for text in results for line in text.splitlines()]
    measured = re.findall(
        r"^\| .*(?: px \| [\d,]| s \|| ms \||pictures/s|steps/s|convnet, width|exponent|% \|).*$",
        (ROOT / document).read_text(),
        re.MULTILINE,
    )
    assert measured and not [row for row in measured if row not in rows]


def names(body: list[ast.stmt], inside: str = "") -> set[str]:
    """What a module defines at its top level, and `Class.member` for what its classes define."""
    found = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(inside + node.name)
        if isinstance(node, ast.ClassDef):
            found |= names(node.body, f"{inside}{node.name}.")
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        found |= {inside + part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


def test_the_map_of_the_code_names_what_there_is() -> None:
    text = (ROOT / "docs/code.md").read_text(encoding="utf-8")
    paths = [span for span in re.findall(r"`([^`\s]+)`", text) if "/" in span]
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = re.findall(r"`(lib(?:\.\w+)+)`", text)
    assert all(pkgutil.resolve_name(name) for name in modules) and len(modules) > 5
    rooms = {path.parent.name for path in (ROOT / "lib").glob("*/__init__.py")}
    assert all(f"`lib/{room}/`" in text for room in rooms)


@pytest.mark.parametrize("document", ["docs/pica.md", "docs/imc_swav.md"])
def test_references_to_the_code_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    spans = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", text))
    references = [span.partition(": ") for span in spans if re.match(r"\S+\.(py|yaml)\b", span)]
    assert len(references) > 20
    for path, _, name in references:
        file = ROOT / path
        defined = set(load_yaml(file)) if file.suffix == ".yaml" else names(ast.parse(file.read_text("utf-8")).body)
        assert name in defined, f"{path}: {name}"
