"""The commands and examples of README.md and docs/, run as they are written, but shortened."""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import json
import logging
import math
import os
import pkgutil
import re
import shlex
import shutil
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
from markdown_pages import Image, anchors, images, links, long_sentences, number_of_words, sentences, slug
from PIL import Image as Picture
from runs import same
from safetensors import torch as safetensors
from torch import nn

import main
from docs import generate
from lib import contracts, datasets, networks
from lib.checkpoints import checkpoint
from lib.config.sections import known_fields
from lib.config.settings import setting
from lib.config.yaml_files import load_yaml
from lib.errors import ENDS_WITH_PARENT, SIGNALS, UserError
from lib.methods import method
from lib.methods.batches import ViewBatch
from lib.methods.method import ViewMethod
from lib.report.__main__ import main as report
from lib.runs.all_settings import SECTIONS
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
MAIN = main.main
STEPS = ("--max-steps", "2", "--num-workers", "0")
TINY = {
    "digits.yaml": ("--tfm-working-size", "none", "--tfm-size", "8", "--tfm-resize", "10", "--eval-every", "0",
                    "--baseline", "none"),
    "image_folder.yaml": ("--tfm-size", "32", "--tfm-working-size", "32"),
    "pretrained.yaml": ("--tfm-size", "32"),
}  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(path: Path) -> list[str]:
    lines = "".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines if line.split("#")[0].strip()]


RUNNABLE = [path for path in DOCUMENTS if commands(path) or blocks(path, "python")]
LONG = ("alternatives.md", "parallel.md", "photos.md", "scores.md", "speed.md")  # many runs, or several processes


def shortened(command: str) -> list[str]:
    """The words of a command line of main.py that is run, with what makes it short behind them."""
    words = shlex.split(command)
    extra = ["--eval-sample", "20"]
    if "--evaluate" in words or "--predict" in words:
        return [*words, *extra]
    extra += STEPS
    for name, tiny in TINY.items():
        extra += tiny if any(word.endswith(f"/{name}") for word in words) else ()
    if any(word.endswith("/digits.yaml") for word in words) and "--dataset" not in words:
        extra += ["--train-splits", "train", "--test-splits", "test"]
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
        (folder / "new-photos").symlink_to(folder / "photos")
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
            status = MAIN(words)
        finally:
            logging.disable(logging.NOTSET)  # `--processes` is silent itself
        assert status == 0, f"{shlex.join(words)}: {self._capsys.readouterr().err}"
        assert "--dry-run" in words or "--list" in words or self._scored() > done, f"{shlex.join(words)} left no scores"

    def main_of_python(self, words: list[str]) -> int:
        """What `main.main` is for the examples in Python."""
        self.main(shortened(shlex.join(words)))
        return 0

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


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, marks=[pytest.mark.slow] if path.name in LONG else []) for path in RUNNABLE],
    ids=lambda path: path.name,
)
def test_the_commands_and_examples_of_a_document_run(
    document: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    namespace: dict[str, Any] = {}  # a page's examples build on each other
    monkeypatch.setattr(main, "main", workplace.main_of_python)
    for example in code[len(names) :]:
        if "model.onnx" in example and "--export" not in example:
            workplace.run("python main.py --evaluate sessions/NAME/checkpoint/latest.ckpt --export model.onnx")
        exec(compile(workplace.filled(example), document.name, "exec"), namespace)


TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
FOREIGN = (
    "Name or service not known", "No space left on device", "Function not implemented", "expected one argument",
    "No such file or directory", "No module named", "Cannot handle this data type: (1, 1, 3), <f4",
    "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, "
    "name: EADDRINUSE, message: address already in use",
)  # fmt: skip
"""What messages contain that the operating system, Python, Pillow or PyTorch says."""
DIGITS = "--cfgs configs/base.yaml configs/digits.yaml"
FOLDER = (
    "--cfgs configs/base.yaml configs/image_folder.yaml --num-clusters 2 --network convnet --net-width 4 --data-root"
)
FEATURES = (
    "--cfgs configs/imc_swav/base.yaml configs/imc_swav/pretrained.yaml --num-clusters 2 --network convnet --net-width 4 "
    "--net-weights none --tfm-size 32 --tfm-resize 32 --tfm-means 0 0 0 --tfm-stds 1 1 1 --data-root ~/photos"
)
MISTAKES = (
    f"{DIGITS} --clusters 12",
    f"{DIGITS} --batch-size",
    "--cfgs nofile.yaml",
    f"{DIGITS} --prototypes 30",
    "--cfgs configs/imc_swav/base.yaml configs/digits.yaml",
    "--cfgs configs/base.yaml",
    f"{DIGITS} --num-clusters 12",
    f"{FOLDER} ~/empty",
    f"{FOLDER} ~/phtos",
    f"{FOLDER} ~/incomplete",
    f"{FOLDER} ~/broken",
    f"{FOLDER} ~/photos --max-megapixels 0.0001",
    "--cfgs configs/imc_swav/base.yaml configs/imc_swav/image_folder.yaml --network convnet --data-root ~/photos --batch-size 64",
    f"{FEATURES} --feature-neighbours 50",
    f"{DIGITS} --net-width 300000",
    f"{DIGITS} --optimizer sgd --base-lr 1e9 --max-epochs 1",
    f"{DIGITS} --net-weights missing.pth",
    f"{DIGITS} --net-weights theirs.pth",
    "--evaluate theirs.pth",
    "--evaluate damaged.ckpt",
    "--resume sessions/mine/checkpoint/latest.ckpt --net-width 5",
    "--resume sessions/mine/checkpoint/latest.ckpt --data-root ~/others",
    "--resume pretrained/pica-digits.safetensors",
    f"{DIGITS} --session mine",
    f"{FOLDER} ~/photos --copy-to ~/sorted",
    f"{FOLDER} ~/photos --copy-to ~/photos/sorted",
    f"{DIGITS} --imports my_networks",
)
"""Commands that end in a message of docs/troubleshooting.md."""


def messages() -> list[str]:
    """What docs/troubleshooting.md quotes, in one line each."""
    return [" ".join(block.split()) for block in blocks(TROUBLESHOOTING, "text")]


def texts_of_the_program() -> list[list[str]]:
    """The fixed parts of every text in the source, between what is filled in."""
    found = []
    files = [ROOT / "main.py", *(file for room in ("lib", "pica", "imc_swav") for file in (ROOT / room).rglob("*.py"))]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                values = [re.sub(r"\{\w*(:\w+)?\}", "\0", node.value)]
            else:
                continue
            parts = [" ".join(part.split()) for part in "".join(values).split("\0")]
            found.append([part for part in parts if part])
    return [parts for parts in found if sum(map(len, parts)) >= 9 and " " in " ".join(parts)]


def places_of(parts: list[str], message: str) -> list[tuple[int, int]]:
    """Where the parts are in a message, one after the other; nowhere unless all are."""
    places = []
    start = 0
    for part in parts:
        start = message.find(part, start)
        if start < 0:
            return []
        places.append((start, start + len(part)))
        start += len(part)
    return places


def unknown_words(message: str, texts: list[list[str]]) -> list[str]:
    """Runs of three or more plain words in a message that no text of the program has."""
    left = message
    for text in FOREIGN:
        left = left.replace(text, "\0" * len(text))
    for parts in texts:
        for start, end in places_of(parts, message):
            left = left[:start] + "\0" * (end - start) + left[end:]
    return [run for run in re.split("\0+", left) if len(re.findall(r"(?<![\w/.-])[A-Za-z]{2,}(?![\w/.-])", run)) > 2]


def test_messages_of_troubleshooting_are_texts_of_the_program() -> None:
    texts = texts_of_the_program()
    assert len(messages()) > 40
    assert {message: words for message in messages() if (words := unknown_words(message, texts))} == {}
    assert unknown_words("error: the folder photos is nowhere to be seen; look for it", texts)
    assert unknown_words("error: the folder photos does not exist, or access to it is forbidden to you all", texts)


def test_mistakes_end_in_the_messages_of_troubleshooting(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workplace.folder
    for name in ("empty", "sorted", "incomplete/2", "broken/1"):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        picture(folder / f"incomplete/{i}/{i}.png", seed=i)
        picture(folder / f"broken/0/{i}.png", seed=i)
        picture(folder / f"broken/1/{i}.png", seed=i)
    (folder / "broken/0/hello.png").write_text("hello", encoding="utf-8")
    shutil.copytree(folder / "photos", folder / "others")
    (folder / "others/0/0.png").rename(folder / "others/0/renamed.png")
    torch.save(nn.Linear(2, 2), folder / "theirs.pth")
    workplace.main([*shortened(workplace.filled(f"{FOLDER} ~/photos")), "--session", "mine"])
    whole = (folder / "sessions/mine/checkpoint/latest.ckpt").read_bytes()
    (folder / "damaged.ckpt").write_bytes(whole[:2000] + b"!" + whole[2001:])
    quoted = messages()
    others = {}
    for command in MISTAKES:
        capsys.readouterr()
        status = main.main(shlex.split(workplace.filled(command)))
        (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert status == (1 if "stopped itself" in told else 2)
        if (told := re.sub(rf"{folder}(?=/)", "~", told).replace(str(folder), "/home/me")) not in quoted:
            others[command] = told
    assert others == {}
    (folder / "sessions/begun").mkdir()
    assert report(["sessions/begun"]) == 2
    assert capsys.readouterr().err.strip() in quoted


OUTPUTS = ROOT / "docs/outputs.md"


def first_column(section: str) -> set[str]:
    """The names in the first column of the tables of a section of docs/outputs.md."""
    _, _, rest = OUTPUTS.read_text(encoding="utf-8").partition(f"# {section}\n")
    lines = re.split(r"\n##+ ", rest)[0].splitlines()
    return {name for line in lines if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_outputs_md_lists_the_files_and_keys_of_a_session(workplace: Workplace) -> None:
    folder = workplace.folder
    (folder / "photos/0/broken.png").write_text("broken", encoding="utf-8")
    words = f"{FOLDER} ~/photos --tfm-size 32 --tfm-working-size 32 --eval-sample 20 --seed 1"
    kept = "--session kept --max-epochs 1 --keep 1 --on-bad-image skip --copy-to copies --baseline kmeans --top-k 2"
    workplace.main(shlex.split(workplace.filled(f"{words} {kept}")))
    assert main.main(shlex.split(f"{DIGITS} --optimizer sgd --base-lr 1e9 --max-epochs 1 --session faulty")) == 1
    kept_session = folder / "sessions/kept"
    left = {str(path.relative_to(kept_session)) for path in kept_session.rglob("*") if path.is_file()}
    left = {"tfboard/" if name.startswith("tfboard/") else name for name in left}
    left = {re.sub(r"epoch-\d+", "epoch-00003", name) for name in left}
    left |= {"fault.json", "checkpoint/fault.ckpt"} & {
        str(path.relative_to(folder / "sessions/faulty")) for path in (folder / "sessions/faulty").rglob("*")
    }
    elsewhere = {
        "summary.json",
        "runs/",
        ".lock",
        "neighbours.npy",
    }  # of several runs, while a run lasts, of other views
    assert left == first_column("The files") - elsewhere

    scores = json.loads((kept_session / "scores.json").read_text(encoding="utf-8"))
    listed = first_column("scores.json")
    assert scores["all"].keys() - {"top2"} == listed - {"top5", "unscored"}
    with open(kept_session / "predictions.csv", encoding="utf-8", newline="") as file:
        assert set(csv.DictReader(file).fieldnames or ()) == first_column("predictions.csv")
    with np.load(kept_session / "predictions.npz") as archive:
        assert set(archive) == first_column("predictions.npz")
    text = OUTPUTS.read_text(encoding="utf-8")
    keys = {
        key for name in ("metrics", "training") for line in lines_of(kept_session / f"{name}.jsonl") for key in line
    }
    keys |= lines_of(kept_session / "provenance.jsonl")[0].keys()
    assert {key for key in keys - {"top2"} if not key.startswith("head") and f"`{key}`" not in text} == set()
    for summary in (ROOT / "results").glob("*/*/summary.json"):
        assert json.loads(summary.read_text(encoding="utf-8")).keys() <= first_column("summary.json") - {"published"}


def test_what_is_in_no_list_of_this_file_is_missed(workplace: Workplace) -> None:
    with pytest.raises(pytest.fail.Exception, match="no reason is given: bash train.sh"):
        workplace.run("bash train.sh")
    with pytest.raises(AssertionError, match="unknown flag --clusters"):
        workplace.run("python main.py --cfgs configs/base.yaml configs/digits.yaml --clusters 3")


LINES = {"my_iic": 30, "my_scan": 35, "my_proximal": 30, "my_momentum": 35}  # of a method, at most


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
    for module in LINES:  # some import others
        register = f'@register("{module.removeprefix("my_")}")'
        (code,) = [block for block in blocks(ROOT / "docs/extend.md", "python") if register in block]
        (workplace.folder / f"{module}.py").write_text(code, encoding="utf-8")
    (command,) = [line for line in commands(ROOT / "docs/extend.md") if f"--method {title}" in line]
    sys.path.insert(0, str(workplace.folder))
    return shortened(command.partition("main.py ")[2]), importlib.import_module(name)


def loss_of(method: Any, *views: torch.Tensor) -> float:
    return float(method(ViewBatch(torch.arange(len(views[0])), list(views), counts=(len(views[0]),)))["loss"])


def test_the_objective_of_iic_is_the_mutual_information(workplace: Workplace) -> None:
    _, module = own_method(workplace, "my_iic")
    network = nn.Identity()
    network.feature_dim = 4
    iic = module.IIC(network, 4, module.IIC.Settings())
    iic.classify = lambda features: features
    sure = torch.eye(4).repeat(3, 1)
    unsure = torch.full((12, 4), 0.25)
    assert loss_of(iic, sure, sure) == pytest.approx(-math.log(4), abs=1e-5)
    assert loss_of(iic, sure, sure.roll(1, dims=1)) == pytest.approx(-math.log(2), abs=1e-5)  # symmetrised
    assert loss_of(iic, sure, unsure) == pytest.approx(0, abs=1e-5)
    # Of two binary variables that agree with probability 3/4: log 2 − H(1/4).
    one = torch.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    other = torch.eye(2)[[0, 0, 0, 1, 1, 1, 1, 0]]
    expected = -(math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert loss_of(iic, one, other) == pytest.approx(expected, abs=1e-5)


def test_the_objective_of_scan_is_agreement_and_entropy(workplace: Workplace) -> None:
    _, module = own_method(workplace, "my_scan")
    network = nn.Identity()
    network.feature_dim = 4
    scan = module.SCAN(network, 4, module.SCAN.Settings())
    scan.classify = lambda features: features
    sure = torch.eye(4).repeat(3, 1)
    unsure = torch.full((12, 4), 0.25)
    assert loss_of(scan, sure, sure) == pytest.approx(-5 * math.log(4), abs=1e-4)
    assert loss_of(scan, unsure, unsure) == pytest.approx(math.log(4) - 5 * math.log(4), abs=1e-4)


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


def test_the_bank_of_extend_md_stays_with_its_run(workplace: Workplace) -> None:
    words, _ = own_method(workplace, "my_proximal")
    workplace.main([*words, "--session", "run"])
    path = "sessions/run/checkpoint/latest.ckpt"
    method = checkpoint.load(workplace.folder / path)["method"]
    assert method["_extra_state"]["bank"].shape == (1797, 16), (
        "one row for each image, also of those that are only scored"
    )
    assert int(method["_extra_state"]["bank"].any(dim=1).sum()) == 2 * 64, "of the images of two steps"
    workplace.main(
        ["--imports", "my_proximal", "--predict", path, "--dataset", "image_folder", "--data-root", "photos"]
    )
    workplace.main(["--imports", "my_proximal", "--evaluate", path, "--export", "model.safetensors"])
    for file in (path, "model.safetensors"):
        assert main.load(str(workplace.folder / file)).method.bank is None
    shapes = [value.shape for value in safetensors.load_file(workplace.folder / "model.safetensors").values()]
    assert all(1797 not in shape for shape in shapes)


def test_the_momentum_encoder_of_extend_md_follows_the_network(workplace: Workplace) -> None:
    _, module = own_method(workplace, "my_momentum")
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    network.feature_dim = 4
    method = module.MomentumIIC(network, 2, module.MomentumIIC.Settings()).train()
    slow = method.teacher
    trained = {weight for group in method.parameter_groups() for weight in group["params"]}
    assert trained >= set(network.parameters()) and trained.isdisjoint(slow.parameters())
    views = [torch.randn(8, 4), torch.randn(8, 4)]
    fast, kept = method.encode(views)
    assert fast.requires_grad and not kept.requires_grad
    assert torch.equal(slow[1].running_mean, torch.zeros(4)) and not torch.equal(
        network[1].running_mean, torch.zeros(4)
    )
    with torch.no_grad():
        network[0].weight.add_(1)
    before = slow[0].weight.clone()
    method.before_forward(0)
    torch.testing.assert_close(slow[0].weight, before + 0.01)
    assert same(dict(slow.named_buffers()), dict(network.named_buffers()))


ORDER = """
import torch
from torch import nn

from lib.machine import processes
from lib.methods.method import ViewMethod, register
from lib.transforms import original


@register("order")
class Order(ViewMethod):
    def __init__(self, network, num_clusters):
        super().__init__(network, num_clusters)
        self.head = nn.Linear(network.feature_dim, num_clusters)

    def views(self, transforms):
        return (original(transforms),)

    def classify(self, features):
        return self.head(features).softmax(dim=1)

    def forward(self, batch):
        (greys,) = processes.gather_views([view.mean(dim=(1, 2, 3))[:, None] for view in batch.views], batch.counts)
        torch.testing.assert_close(greys[:, 0], batch.index / 25.5)
        assert len(batch.views[0]) == batch.counts[processes.rank()] and len(batch.index) + batch.left_out == 12
        return super().forward(batch)

    def loss(self, features):
        return self.classify(features[0]).square().mean()
"""
"""A method, without settings, that sees whether the rows of its features are those of `batch.index`."""


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_of_features_are_in_the_order_of_the_index(count: int, workplace: Workplace) -> None:
    (workplace.folder / "my_order.py").write_text(ORDER, encoding="utf-8")
    for number in range(25):
        file = workplace.folder / f"greys/{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Picture.new("L", (8, 8), number * 10).save(file)
    broken = workplace.folder / "greys/07.png"
    broken.write_bytes(broken.read_bytes()[:40])
    words = ["--imports", "my_order", "--method", "order", "--dataset", "image_folder", "--data-root", "greys"]
    words += ["--num-clusters", "2", "--net-cin", "1", "--network", "convnet", "--net-width", "4", "--tfm-size", "8"]
    words += [
        "--tfm-resize",
        "8",
        "--tfm-means",
        "0",
        "--tfm-stds",
        "1",
        "--on-bad-image",
        "skip",
        "--batch-size",
        "12",
    ]
    words += ["--max-epochs", "1", "--baseline", "none", "--processes", str(count), "--threads", "1"]
    run = started(workplace, words, "run")
    _, err = run.communicate()
    assert run.returncode == 0 and "1 picture could not be read" in err, err


def started(workplace: Workplace, words: list[str], session: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "main.py"), *words, "--session", session, "--resume", "auto"]
    return subprocess.Popen(command, cwd=workplace.folder, text=True, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", LINES)
def test_a_method_of_extend_md_is_killed_and_resumed_with_an_unreadable_image(
    name: str, count: int, workplace: Workplace
) -> None:
    words, _ = own_method(workplace, name)
    broken = workplace.folder / "photos/0/broken.png"
    broken.write_bytes(picture(broken).read_bytes()[:200])
    words += ["--dataset", "image_folder", "--data-root", "photos", "--on-bad-image", "skip", "--net-cin", "3"]
    words += ["--train-splits", "none", "--test-splits", "none", "--tfm-means", "none", "--tfm-stds", "none"]
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
    for contract in (*classes, datasets.Splits, ViewBatch, ViewMethod):
        parts = {name for name in (*vars(contract), *vars(contract).get("__annotations__", {})) if name[0] != "_"}
        named = set(re.findall(r"^\| `(\w+)", sections[contract.__name__], flags=re.MULTILINE))
        inherited = {name for base in contract.__mro__[1:] for name in vars(base)}
        assert parts - inherited <= named | {"len"}, f"{contract.__name__}: {parts - inherited - named}"
        fields = set(getattr(contract, "__dataclass_fields__", {}))
        assert named - {"len"} <= parts | fields, f"{contract.__name__}: {named - parts - fields}"
        assert fields <= named or contract is contracts.NeighbourRecipe, f"{contract.__name__}: {fields - named}"
    assert "| `forward(batch)`" in sections["ViewMethod"], "it is torch's function too, so no list above has it"


def test_extend_md_lists_the_options_of_a_setting() -> None:
    text = (
        (ROOT / "docs/extend.md")
        .read_text(encoding="utf-8")
        .partition("## Options of a setting")[2]
        .partition("\n## ")[0]
    )
    cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(
        inspect.signature(setting).parameters
    )


@pytest.fixture(scope="module")
def regenerated_pages() -> dict[str, str]:
    """{page: its text as docs/generate.py makes it}, by a process in which no test has registered anything."""
    code = "import json; from docs import generate; print(json.dumps([(str(p), t) for p, t in generate.changes()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_generated_parts_are_what_the_generator_writes(regenerated_pages: dict[str, str]) -> None:
    assert {"results.md", "speed.md", "command-line.md"} <= {Path(page).name for page in regenerated_pages}
    changed = [page for page, text in regenerated_pages.items() if Path(page).read_text(encoding="utf-8") != text]
    assert not changed, f"run python docs/generate.py, which changes {changed}"


def test_generated_parts_stand_between_markers() -> None:
    parts = {"one": lambda: "| 1 |", "two": lambda: "| 2 |"}
    page = "Before.\n<!-- generated: one -->\nold\n<!-- end generated -->\nBetween.\n<!--generated:two--><!-- end generated -->\n"
    new = generate.regenerated(page, "a page", parts)
    assert new == (
        "Before.\n<!-- generated: one -->\n\n| 1 |\n\n<!-- end generated -->\nBetween.\n"
        "<!-- generated: two -->\n\n| 2 |\n\n<!-- end generated -->\n"
    )
    assert generate.regenerated(new, "a page", parts) == new


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (
            "<!-- generated: three -->\n<!-- end generated -->",
            "unknown generated part 'three' in a page; the names are one",
        ),
        ("<!-- generated: -->\n<!-- end generated -->", "a generated part without a name in a page"),
        ("<!-- generated: one -->\n", "the generated part 'one' in a page has no end"),
        ("<!-- generated: one -->\n<!-- generated: one -->\n<!-- end generated -->", "'one' in a page has no end"),
        ("<!-- end generated -->", "without a beginning"),
    ],
)
def test_generated_parts_with_a_wrong_marker_are_an_error(page: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate.regenerated(page, "a page", {"one": lambda: "| 1 |"})


def test_generated_parts_that_no_page_shows_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PARTS", {name: lambda: "" for name in (*generate.PARTS, "forgotten")})
    with pytest.raises(UserError, match="no page of docs/ shows forgotten"):
        list(generate.changes())


def test_the_command_line_page_has_every_setting(regenerated_pages: dict[str, str]) -> None:
    text = regenerated_pages[str(ROOT / "docs/command-line.md")]
    shown = re.findall(r"^\| `--([\w-]+) ", text, re.MULTILINE)
    assert set(shown) == {name.replace("_", "-") for name in known_fields(SECTIONS)}
    assert "`fp32`, `bf16`, `auto` | `fp32` |" in text and "| `10 GiB` |" in text  # choices, default and unit
    assert "| `--pica-lamda X` | weight of the loss term that balances the cluster sizes | `2` | `base.yaml`" in text


def test_the_command_line_page_has_the_exit_statuses(regenerated_pages: dict[str, str]) -> None:
    text = regenerated_pages[str(ROOT / "docs/command-line.md")]
    statuses = re.findall(r"^\| `(\d+)` \|", text, re.MULTILINE)
    assert statuses == ["0", "1", "2", *sorted(str(128 + number) for number in SIGNALS)]


@pytest.mark.parametrize("document", ["docs/speed.md", "docs/parallel.md"])
def test_figures_of_speed_are_those_that_the_benchmarks_left(document: str) -> None:
    results = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("*.md")]
    if any("--short" in text for text in results):
        pytest.skip("`make bench` has written others")
    rows = [line for text in results for line in text.splitlines()]
    measured = re.findall(
        r"^\| .*(?: px \| [\d,]| s \|| ms \||images/s|steps/s|convnet, width|exponent|% \|).*$",
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


PAGES = [*DOCUMENTS, ROOT / "pretrained/README.md"]  # whose links are followed
SOURCES = [
    path
    for pattern in ("*.py", "*.toml", "Makefile", "*/**/*.py", "configs/**/*.yaml", "benchmarks/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if not path.relative_to(ROOT).parts[0].startswith((".", "build", "data", "sessions"))
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One fact. Another one! A third? Yes.", ["One fact.", "Another one!", "A third?", "Yes."]),
        ("It runs\nover lines.\nThen ends.\n\nNext", ["It runs over lines.", "Then ends.", "Next"]),
        ("# A title\ntext\n## Another #\n", ["A title", "text", "Another"]),
        ("Before:\n\n```sh\nmake demo. Now. Then.\n```\n\nAfter.", ["Before:", "After."]),
        ("`make demo. Then` makes it. `main.py` runs.", ["CODE makes it.", "CODE runs."]),
        ("- One item. Two sentences.\n  It continues.\n- Another", ["One item.", "Two sentences.", "It continues.", "Another"]),
        ("1. First\n2) Second\n* Third", ["First", "Second", "Third"]),
        ("| A head | `a|b` |\n| --- | :-: |\n| One. Two. | **bold** cell |", ["A head", "CODE", "One.", "Two.", "bold cell"]),
        ("See [the page. Really](docs/a.md#b) and ![an image](b.png) it.", ["See the page.", "Really and it."]),
        ("> A quote.\n> It continues", ["A quote.", "It continues"]),
        ("ACC is 0.869 (Huang et al. (2020)). J. Smith agrees.", ["ACC is 0.869 (Huang et al. (2020)).", "J. Smith agrees."]),
        ("It ends (in brackets.) Then <!-- not. Here --> <b>goes</b> on.", ["It ends (in brackets.)", "Then goes on."]),
        ("A *word*, a **strong one** and snake_case_name.", ["A word, a strong one and snake_case_name."]),
    ],
)  # fmt: skip
def test_a_page_is_cut_into_its_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("sentence", "count"),
    [("One two-word `span of code` end.", 4), ("0.869 ± 0.032", 2), ("a – b × c", 3), ("/ and … or", 2), ("", 0)],
)
def test_words_of_a_sentence_are_counted(sentence: str, count: int) -> None:
    assert sum(map(number_of_words, sentences(sentence))) == count


def test_a_sentence_of_more_than_22_words_is_long() -> None:
    most = " ".join(["word"] * 22)
    assert long_sentences(f"{most}. {most.capitalize()}.\n\n- {most}\n- {most}") == []
    assert long_sentences(f"Short.\n\n| a | {most} more |") == [f"23 words: {most} more"]


SHORT = (
    "alternatives",
    "contracts",
    "extend",
    "fidelity",
    "index",
    "migrate",
    "photos",
    "python",
    "scores",
    "troubleshooting",
)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in SHORT)])
def test_every_sentence_of_a_page_is_short(page: str) -> None:
    assert long_sentences((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Your own images", "your-own-images"),
        ("CIFAR-10, on two cores", "cifar-10-on-two-cores"),
        ("`--seeds`: several *runs*", "--seeds-several-runs"),
        ("What's in a file & where?", "whats-in-a-file--where"),
        ("The [report](docs/report.md)", "the-report"),
        ("A snake_case_name, _emphasised_", "a-snake_case_name-emphasised"),
        ("Größe × 2", "größe--2"),
    ],
)
def test_headings_get_githubs_anchors(heading: str, expected: str) -> None:
    assert slug(heading) == expected


def test_anchors_links_and_images_of_a_page_are_found() -> None:
    text = (
        "# Top\n\n## Same\n\n## Same\n\n```md\n## Not this [no](no.md)\n```\n\n<a id='here'></a>\n"
        '[one](a.md#x) and [`two`](b.md "title") and `[three](c.md)` ![an image](d.png)\n'
        "[![badge](e.svg)](f.md) <img src='g.png' width='3'> <a href=\"h.md\">h</a>\n\n[ref]: i.md\n"
    )
    assert anchors(text) == {"top", "same", "same-1", "here"}
    assert sorted(links(text)) == ["a.md#x", "b.md", "d.png", "e.svg", "f.md", "g.png", "h.md", "i.md"]
    assert images(text) == [Image("d.png", "an image"), Image("e.svg", "badge"), Image("g.png", "")]


def problem_of(target: str, page: Path) -> str:
    """Why a link of a page leads nowhere; empty where it does not."""
    if re.match(r"[a-z]+:", target):
        return ""  # another place, which a test does not visit
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return f"{target}: there is no such file"
    if anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8"))):
        return f"{target}: there is no such heading"
    return ""


def test_a_link_that_leads_nowhere_is_noticed() -> None:
    page = ROOT / "docs/code.md"
    assert [
        problem_of(target, page) for target in ("https://a.example/b", "#the-code", "../README.md", "extend.md")
    ] == [""] * 4
    assert "no such heading" in problem_of("#nowhere", page)
    assert "no such heading" in problem_of("extend.md#nowhere", page)
    assert "no such file" in problem_of("nowhere.md", page)
    assert "no such file" in problem_of("../../elsewhere.md", page)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_images_have_texts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [problem for target in links(text) if (problem := problem_of(target, page))] == []
    assert [image.target for image in images(text) if len(image.alternative.split()) < 2] == []


def test_pages_that_the_code_names_are_there() -> None:
    missing = {}
    for path in SOURCES:
        named = re.findall(r"\bdocs/[\w/-]+\.md(?:#[\w-]+)?", path.read_text(encoding="utf-8"))
        if path != Path(__file__) and (wrong := [name for name in named if problem_of(name, ROOT / "README.md")]):
            missing[str(path.relative_to(ROOT))] = wrong
    assert len(SOURCES) > 100 and missing == {}
