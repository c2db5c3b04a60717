from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DIGITS, ROOT, picture, resolve

import main
from lib.config import help_text
from lib.config.sections import fields_of, known_fields
from lib.runs.all_settings import EVERYDAY, EXAMPLES, SECTIONS

Cli = Callable[..., tuple[int, str, str]]
IMC_SWAV = ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/cifar10.yaml")
PIPE = 80  # columns
Printed = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terminal runs the tests."""
    monkeypatch.setenv("COLUMNS", str(PIPE))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """The lines that a command line prints, which ends well."""

    def run(*words: object) -> list[str]:
        assert main.main([str(word) for word in words]) == 0
        out, err = capsys.readouterr()
        assert not err
        return out.splitlines()

    return run


def entry(text: str, flag: str) -> str:
    """What the help says of a flag, on one line."""
    entry = re.search(rf"^  {flag}(?![\w-]).*\n(?: {{26}}.*\n)*", text + "\n", re.MULTILINE)
    assert entry, flag
    return " ".join(entry[0].split())


def names_in(text: str) -> list[str]:
    return re.findall(r"^  --([\w-]+)", text, re.MULTILINE)


@pytest.mark.parametrize("words", [(), DIGITS, IMC_SWAV], ids=["nothing", "digits", "imc_swav"])
def test_the_short_help_is_short_and_ends_with_examples(words: tuple[object, ...], printed: Printed) -> None:
    lines = printed(*words, "--help")
    out = "\n".join(lines)
    assert len(lines) <= 65 and max(map(len, lines)) <= PIPE
    assert lines[-1].startswith("--help all shows every setting")
    assert out.index("examples:") > out.index("--labels FILE")
    everyday = {name.replace("_", "-") for texts in EVERYDAY.values() for name in texts}
    assert set(names_in(out)) == everyday and {"labels", "num-clusters", "gpus"} <= everyday


def test_every_setting_of_every_day_exists() -> None:
    known = known_fields(SECTIONS)
    assert [name for texts in EVERYDAY.values() for name in texts if name not in known] == []


@pytest.mark.parametrize("words", [(), IMC_SWAV], ids=["pica", "imc_swav"])
def test_help_all_shows_every_setting(words: tuple[object, ...], printed: Printed) -> None:
    lines = printed(*words, "--help", "all")
    out = "\n".join(lines)
    assert max(map(len, lines)) <= PIPE
    shown = names_in(out)
    assert set(shown) == {name.replace("_", "-") for name in known_fields(SECTIONS)}
    used = resolve(*words)
    first = shown[: len([name for section in used.sections for name in fields_of(section)])]
    assert set(first) == {name.replace("_", "-") for section in used.sections for name in fields_of(section)}
    other = "imc_swav" if not words else "pica"
    assert f"\nmethod {other}; only with --method {other}:\n" in out


def test_nothing_can_be_mistaken_for_a_default() -> None:
    text = help_text.complete(resolve(*DIGITS), SECTIONS)
    for flag, said in (
        ("--max-epochs N", "(default: 200 epochs; set here: 90 epochs)"),
        ("--tfm-size N", "(default: 224 pixels; set here: 16 pixels)"),
        ("--max-steps N", "(in steps; default: none)"),
        ("--disk-cache X", "(default: 10 GiB)"),
        ("--save-every-epochs N", "(default: 1 epoch)"),
        ("--on-bad-image NAME", "(one of: error, skip; default: error)"),
        ("--network NAME", "timm:NAME, torchvision:NAME; default: resnet34; set here: convnet)"),
        ("--net-cin N", "(one of: 1, 3; default: 3; set here: 1)"),
        ("--gpus N,N", "'' = none, so the CPU computes (default: '')"),
        ("--tfm-ratio X [X ...]".replace("[", r"\[").replace("]", r"\]"), "(default: 0.75 1.33333)"),
        (r"--log-file \[true\|false\]", "(default: true)"),
    ):
        assert entry(text, flag).endswith(said), entry(text, flag)
    for name, field in known_fields(SECTIONS).items():
        meant = re.findall(r"[\w.]+: ", field.metadata["help"].replace("of: ", "").replace("from: ", ""))
        assert not [word for word in meant if word in ("none: ", "auto: ", "0: ", "default: ")], name


def test_help_takes_the_columns_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(*DIGITS)
    widths = {}
    for columns in (60, 80, 100, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = help_text.complete(config, SECTIONS).splitlines()
        widths[columns] = max(len(line) for line in lines if str(ROOT) not in line)  # no path is cut in two
    assert widths[60] <= 64 and 75 < widths[80] <= 80 and 95 < widths[100] <= 100 and widths[200] <= 110


def test_another_word_behind_help_is_a_mistake(cli: Cli) -> None:
    status, out, err = cli("--help", "every")
    assert status == 2 and not out and err.count("\n") == 1 and "--help: " in err and "all" in err


@pytest.mark.parametrize("command", [command for _, command in EXAMPLES])
def test_the_examples_work(command: str, cli: Cli, tmp_path: Path) -> None:
    for i in range(24):
        picture(tmp_path / "images" / f"{i}.png", seed=i)
    words = shlex.split(command.replace("FOLDER", str(tmp_path / "images")))
    assert words[:2] == ["python", "main.py"]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words[2:]]
    if "--predict" in words:
        status, _, err = cli(*DIGITS, "--session", "a", "--max-steps", 1, "--dataset", "image_folder", "--data-root",
                             tmp_path / "images", "--batch-size", 8, "--net-cin", 3, "--eval-sample", 0,
                             "--train-splits", "none", "--test-splits", "none", "--tfm-means", "none",
                             "--tfm-stds", "none", "--baseline", "none")  # fmt: skip
        assert status == 0, err
        words[words.index("--predict") + 1] = str(tmp_path / "sessions/a/checkpoint/latest.ckpt")
        words[words.index("NEW")] = str(tmp_path / "new")
    elif "--data-root" in words:
        words += ["--batch-size", "8", "--net-weights", "none", "--dry-run"]
    else:
        words += ["--dry-run"]
    status, _, err = cli(*words)
    assert status == 0, err


def test_a_command_is_pasted_as_it_is_shown() -> None:
    text = help_text.short(resolve(), SECTIONS, EVERYDAY, EXAMPLES)
    joined = " ".join(text.replace("\\\n", " ").split())
    assert all(command in joined for _, command in EXAMPLES)


def test_the_list_names_every_component_in_a_sentence(printed: Printed) -> None:
    lines = printed("--list")
    out = "\n".join(lines)
    assert max(map(len, lines)) <= PIPE
    count = 0
    for section in SECTIONS:
        for field in fields_of(section).values():
            for name, text in field.metadata["component"].listed() if field.metadata["component"] else ():
                if not text:  # another test's
                    continue
                count += 1
                said = re.search(rf"^  {name} .*\n(?: {{26}}.*\n)*", out + "\n", re.MULTILINE)
                assert said and " ".join(said[0].split()) == f"{name} {text}", name
                assert text[0].isupper() or text[0].isdigit(), name
                assert text.endswith(".") and "picture" not in text, name
    assert count >= 23
    for heading in ("methods, for --method NAME:", "data sets, for --dataset NAME:", "learning-rate policies, for"):
        assert heading in out


def test_texts_say_image_and_only() -> None:
    for name, field in known_fields(SECTIONS).items():
        assert not re.search(r"\b(pictures?|alone|goes on|go on|px)\b", field.metadata["help"]), name
        assert field.metadata["help"].isprintable() and not field.metadata["help"].endswith("."), name
