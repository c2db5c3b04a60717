from __future__ import annotations

from pathlib import Path

import pytest

from lib.errors import UserError
from lib.training.schedules import Fixed, MultiStep, Step


def test_fixed() -> None:
    assert Fixed(0.1)(0) == Fixed(0.1)(199) == 0.1


def test_step_counts_from_its_offset() -> None:
    rate = Step(1.0, Step.Settings(lr_decay_step=10, lr_decay_rate=0.5, lr_decay_offset=20))
    assert [rate(epoch) for epoch in (0, 19, 20, 29, 30, 39, 40)] == [1, 1, 1, 1, 0.5, 0.5, 0.25]


def test_multistep_gives_the_rate_before_each_epoch_and_goes_on() -> None:
    rate = MultiStep(9.0, MultiStep.Settings(((2, 0.3), (4, 0.2))))
    assert [rate(epoch) for epoch in range(6)] == [0.3, 0.3, 0.2, 0.2, 0.2, 0.2]


def test_a_dash_stops() -> None:
    rate = MultiStep(9.0, MultiStep.Settings(((2, 0.3), (3, "-"))))
    assert [rate(epoch) for epoch in range(4)] == [0.3, 0.3, None, None]


def test_a_file_is_read_again_at_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_text("# warm\n2: 1e-3  # two epochs\n\n5:1e-4\n")
    rate = MultiStep(9.0, MultiStep.Settings(str(path)))
    assert [rate(epoch) for epoch in (0, 1, 2, 9)] == [1e-3, 1e-3, 1e-4, 1e-4]
    path.write_text("2:1e-3\n5:-\n")
    assert rate(3) is None


@pytest.mark.parametrize("content", ["", "# nothing", "2 1e-3", "2:fast", "4:1\n2:1", "2:-1"])
def test_a_bad_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_text(content)
    with pytest.raises(UserError, match="rates"):
        MultiStep(9.0, MultiStep.Settings(str(path)))


def test_a_missing_schedule_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        MultiStep(9.0, MultiStep.Settings(str(tmp_path / "absent")))
    with pytest.raises(UserError, match="--lr-schedule"):
        MultiStep(9.0, MultiStep.Settings())
