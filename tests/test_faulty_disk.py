"""Wherever the disk fails or a run is killed: what was there stays, results stay, and a line says what happened."""

from __future__ import annotations

import errno
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, picture
from faulty_disk import KILL, End, FaultyDisk
from runs import assert_same_run

from lib.checkpoints import checkpoint

WORDS = ("--network", "convnet", "--net-width", 4, "--tfm-size", 8, "--tfm-resize", 10, "--tfm-working-size", 10, "--batch-size", 8,
         "--num-clusters", 3, "--seed", 3, "--num-workers", 0, "--disk-cache", 0, "--baseline", "none", "--eval-sample", 20,
         "--base-lr", 0.05, "--keep", 1, "--threads", 1)  # fmt: skip
METHODS: dict[str, tuple[object, ...]] = {
    "pica": ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", *WORDS),
    "imc_swav": ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/image_folder.yaml", *WORDS,
                 "--size-crops", 8, 6, "--prototypes", 6, "--classifier-dim", 8),
}  # fmt: skip
FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "SIGKILL": KILL}
Tree = dict[str, bytes]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("disk")
    (folder / "work").mkdir()
    for i in range(16):
        picture(folder / "images" / f"{i:02}.png", seed=i)
    made = FaultyDisk(folder, folder / "work")
    yield made
    made.close()


def tree(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def results(work: Path) -> Tree:
    """What the finished sessions predict, by their names."""
    return {path.parent.name: path.read_bytes() for path in (work / "sessions").glob("*/predictions.csv")}


def sorted_by(table: bytes) -> set[str]:
    rows = [line.split(",") for line in table.decode().splitlines()[1:]]
    return {f"cluster-{row[1]}/{row[0]}" for row in rows}


class Places:
    """A run, at each of whose places the disk fails or the process is killed.

    Args:
        disk: runs it.
        words: the command line, without --session-root.
        before: makes what there is before each run, in the empty folder of the work.
    """

    def __init__(self, disk: FaultyDisk, words: tuple[object, ...], before: Callable[[], None]) -> None:
        self.disk = disk
        self.work = disk.watched
        self.words = (*words, "--data-root", disk.folder / "images", "--session-root", self.work / "sessions")
        self._empty()
        before()
        self._kept = disk.folder / "kept"
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self.work, self._kept, symlinks=True)
        self.before = tree(self.work)
        straight = disk.run(self.words)
        assert straight.status == 0, straight.err
        self.calls = straight.calls
        self.after = tree(self.work)

    def _empty(self) -> None:
        shutil.rmtree(self.work)
        self.work.mkdir()

    def end(self, number: int, code: int) -> End:
        shutil.rmtree(self.work)
        shutil.copytree(self._kept, self.work, symlinks=True)
        end = self.disk.run(self.words, number, code)
        assert "Traceback" not in end.err, end.err
        # TensorBoard's thread makes more or fewer calls. A folder may be there already; there is another way to copy, or to link.
        met = number <= len(end.calls)
        if met and code == KILL:
            assert end.status == -9
        elif met and not (end.calls[number - 1].startswith(("mkdir", "link", "sendfile64")) and end.status == 0):
            assert end.status == 2, end.err
            errors = [line for line in end.err.splitlines() if not line.startswith("warning: ")]
            assert len(errors) == 1 and errors[0].startswith("error: "), end.err
        return end


def copies_are_whole(places: Places, killed: bool) -> None:
    """As before, or as after the run; a killed one may leave them under another name."""
    found = tree(places.work / "sorted")
    states = [
        {name.removeprefix("sorted/"): content for name, content in state.items() if name.startswith("sorted/")}
        for state in (places.before, places.after)
    ]
    if killed and not found:
        found = tree(places.work / ".sorted.replaced")
    assert found in states
    if not killed:
        assert not list(places.work.glob(".*"))


def checkpoints_load(places: Places) -> None:
    for path in places.work.glob("sessions/*/checkpoint/[!.]*.ckpt"):
        checkpoint.load(path)


def check_copies(places: Places, number: int, code: int) -> None:
    places.end(number, code)
    copies_are_whole(places, code == KILL)
    checkpoints_load(places)
    if not places.before and code != KILL:
        for session in places.work.glob("sessions/*"):
            assert any(
                (session / name).exists() for name in ("checkpoint", "metrics.jsonl", "training.jsonl", "tfboard")
            )
    if code != KILL and number % 4:  # a failure in one place leaves what it leaves in another
        return
    end = places.disk.run(places.words)
    assert end.status == 0, end.err
    (wanted,) = {content for name, content in places.after.items() if name.endswith("predictions.csv")}
    assert wanted in results(places.work).values()
    assert {str(path) for path in tree(places.work / "sorted")} == sorted_by(wanted)
    assert not list(places.work.glob(".*"))


def check_export(places: Places, number: int, code: int) -> None:
    end = places.end(number, code)
    (name,) = (name for name in places.before if name.startswith("model."))
    exported = (places.work / name).read_bytes()
    assert exported in (places.before[name], places.after[name])
    now = tree(places.work)
    for kept, content in places.before.items():
        assert kept == name or now[kept] == content
    session = places.work / "sessions" / "scored"
    if code != KILL:
        assert [path.name for path in places.work.iterdir() if path.name.startswith(".")] == []
        assert session.exists() == (session / "predictions.csv").exists(), "a session without results is removed"
        assert end.status == 0 or ("the results are complete in" in end.err) == (session / "scores.json").exists()
    if (session / "scores.json").exists():
        for file in ("predictions.csv", "scores.json"):
            assert (session / file).read_bytes() == places.after[f"sessions/scored/{file}"]


def copying(disk: FaultyDisk, method: str, resumed: bool) -> Places:
    words = (*METHODS[method], "--session", "run", "--copy-to", disk.watched / "sorted")
    if not resumed:
        return Places(disk, (*words, "--max-epochs", 1, "--resume", "auto"), lambda: None)

    def before() -> None:
        end = disk.run((*words, "--max-epochs", 1, "--data-root", disk.folder / "images",
                        "--session-root", disk.watched / "sessions"))  # fmt: skip
        assert end.status == 0, end.err

    latest = disk.watched / "sessions" / "run" / "checkpoint" / "latest.ckpt"
    places = Places(disk, (*words, "--max-epochs", 2, "--resume", latest), before)
    assert any(call.startswith("rename") and call.endswith("sorted") for call in places.calls), "copies are replaced"
    return places


def exporting(disk: FaultyDisk, method: str, ending: str) -> Places:
    trained = disk.watched / "sessions" / "trained"
    where = ("--data-root", disk.folder / "images", "--session-root", disk.watched / "sessions")
    file = disk.watched / f"model.{ending}"

    def before() -> None:
        end = disk.run((*METHODS[method], *where, "--session", "trained", "--max-epochs", 1))
        assert end.status == 0, end.err
        file.write_bytes(b"earlier")

    words = ("--evaluate", trained / "checkpoint" / "latest.ckpt", "--session", "scored", "--export", file)
    return Places(disk, words, before)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "fresh"])
@pytest.mark.parametrize("method", METHODS)
def test_each_place_of_a_run_that_copies(method: str, resumed: bool, fault: str, disk: FaultyDisk) -> None:
    places = copying(disk, method, resumed)
    torture(places, check_copies, fault)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
@pytest.mark.parametrize("method", METHODS)
def test_each_place_of_a_run_that_exports(method: str, ending: str, fault: str, disk: FaultyDisk) -> None:
    # A graph takes seconds, and all but its file is as with the other ending.
    torture(exporting(disk, method, ending), check_export, fault, where="model." if ending == "onnx" else "")


def torture(places: Places, check: Callable[[Places, int, int], None], fault: str, where: str = "") -> None:
    """At each place, but of many alike (the copies, TensorBoard's records) at the first, the middle and the last."""
    alike = defaultdict(list)
    for number, call in enumerate(places.calls, 1):
        alike[re.sub(r"[0-9a-f]{16}|\d", "", call)].append(number)
    failed = []
    for call, numbers in alike.items():
        for number in sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]}) if where in call else ():
            try:
                check(places, number, FAULTS[fault])
            except AssertionError as error:
                failed.append(f"{number} {call}: {error}")
    assert alike and not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_some_places(disk: FaultyDisk) -> None:
    places = copying(disk, "pica", resumed=True)
    copies = [number for number, call in enumerate(places.calls, 1) if call.startswith("sendfile64")]
    swap = [number for number, call in enumerate(places.calls, 1) if call.startswith("rename") and "sorted" in call]
    assert len(copies) >= 16 and len(swap) == 2
    for number, code in ((copies[3], errno.ENOSPC), (swap[1], KILL)):
        check_copies(places, number, code)


def test_killed_while_a_checkpoint_is_written(disk: FaultyDisk) -> None:
    words = (*METHODS["pica"], "--session", "run", "--max-epochs", 2, "--save-every-steps", 1, "--resume", "auto")
    places = Places(disk, words, lambda: None)
    session = places.work / "sessions" / "run"
    straight = disk.folder / "straight"
    shutil.copytree(session, straight)
    calls = [(number, call.split()) for number, call in enumerate(places.calls, 1)]
    last_best = max(number for number, (name, path, *_) in calls if name == "rename" and "/.best.ckpt" in path)
    latest = [number for number, (_, path, *_) in calls if "/.latest.ckpt" in path]
    for number in (last_best, latest[len(latest) // 2], latest[-1]):
        places.end(number, KILL)
        checkpoints_load(places)
        end = disk.run(places.words)
        assert end.status == 0, end.err
        assert_same_run(straight, session)
