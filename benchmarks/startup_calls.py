"""Count our files and functions that a run passes, from `main()` to its first step of the optimiser.

    python benchmarks/startup_calls.py [--list] [FLAG …]

The run is that of `make demo`, or of the flags. It ends before the step, and writes nothing.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

import main as program  # noqa: E402

DEMO = [
    "--cfgs",
    str(ROOT / "configs/base.yaml"),
    str(ROOT / "configs/digits.yaml"),
    "--seed",
    "0",
    "--debug",
]


class FirstStep(BaseException):
    """Ends the run where the optimiser would step for the first time."""


def called(words: list[str]) -> dict[str, set[str]]:
    """File → names of its functions that were called before the first step of the optimiser."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    def stop(*given: object) -> None:
        raise FirstStep

    handle = register_optimizer_step_pre_hook(stop)
    sys.setprofile(note)
    try:
        program.main(words)
    except FirstStep:
        pass
    finally:
        sys.setprofile(None)
        handle.remove()
    functions: defaultdict[str, set[str]] = defaultdict(set)
    for code in seen:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            functions[str(path.relative_to(ROOT))].add(code.co_qualname)
    return functions


def main(words: list[str]) -> None:
    """Print the counts; functions are those with names, without comprehensions and special methods."""
    lists = "--list" in words
    called_in = called([word for word in words if word != "--list"] or DEMO)
    functions = {
        path: sorted(name for name in names if name.rpartition(".")[2].isidentifier() and "__" not in name)
        for path, names in called_in.items()
    }
    del functions[str(Path(__file__).relative_to(ROOT))]
    print(f"{len(functions)} files, {sum(map(len, functions.values()))} functions")
    for path, names in sorted(functions.items()) if lists else ():
        print(f"{path}: {', '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
