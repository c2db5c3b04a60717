"""Learning-rate policies by name: the rate as a pure function of the number of finished epochs.

A component is a class that takes `(base_lr)`, and `settings` behind it if it declares a `Settings` dataclass. Its objects
map the number of finished epochs to a rate, or to None to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.config.registry import Registry
from lib.config.regular_files import check_regular
from lib.config.settings import Section, expanded, setting
from lib.errors import UserError

__all__ = ["get", "names", "register"]

_registry = Registry("learning-rate policy")
register = _registry.register
get = _registry.get
names = _registry.names

Schedule = Callable[[int], float | None]
"""Finished epochs → learning rate, or None to stop before that epoch."""


@dataclass(frozen=True)
class ScheduleSettings(Section):
    title = "learning rate"
    lr_policy: str = setting("fixed", "schedule of the learning rate", component=_registry)
    base_lr: float = setting(0.1, "learning rate at the start", low=0)
    warmup_steps: int = setting(
        0, "first steps, in which the learning rate rises in equal steps to its value", unit="steps", low=0
    )


def warmed_up(rate: float, step: int, steps: int) -> float:
    """The rate at a step, counted over the whole run: `rate · (step + 1) / steps` in the first `steps`."""
    return rate * (step + 1) / steps if step < steps else rate


@register("fixed")
class Fixed:
    """The learning rate stays as it is."""

    def __init__(self, base_lr: float) -> None:
        self.base_lr = base_lr

    def __call__(self, epoch: int) -> float:
        return self.base_lr


@register("step")
class Step:
    """The learning rate is multiplied by --lr-decay-rate at each --lr-decay-step epochs.

    `base_lr · lr_decay_rate^((epoch − lr_decay_offset) // lr_decay_step)` from `lr_decay_offset` on.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "learning-rate policy step"
        lr_decay_step: int = setting(1, "epochs between two decays of the learning rate", unit="epochs", low=1)
        lr_decay_rate: float = setting(0.1, "factor on the learning rate at each decay", low=0)
        lr_decay_offset: int = setting(0, "first epochs, before the decays", unit="epochs", low=0)

    def __init__(self, base_lr: float, settings: Step.Settings) -> None:
        self.base_lr = base_lr
        self.settings = settings

    def __call__(self, epoch: int) -> float:
        s = self.settings
        return float(self.base_lr * s.lr_decay_rate ** (max(epoch - s.lr_decay_offset, 0) // s.lr_decay_step))


Pairs = tuple[tuple[int, float | None], ...]


def read_pairs(entries: tuple[tuple[int, float | str], ...]) -> Pairs:
    """Check `(epoch, rate)` pairs: epochs rise, rates are ≥ 0, and the rate `-` (None here) means stop.

    Raises:
        ValueError: they are not so.
    """
    pairs: list[tuple[int, float | None]] = []
    for epoch, rate in entries:
        if epoch <= (pairs[-1][0] if pairs else -1):
            raise ValueError(f"epoch {epoch} does not come after the one before it")
        if isinstance(rate, str) and rate.strip() != "-":
            raise ValueError(f"{rate!r} is neither a rate nor '-'")
        if not isinstance(rate, str) and rate < 0:
            raise ValueError(f"the rate {rate} is below 0")
        pairs.append((epoch, None if isinstance(rate, str) else rate))
    return tuple(pairs)


def _convert(value: str | tuple[tuple[int, float | str], ...]) -> str | tuple[tuple[int, float | str], ...]:
    if isinstance(value, tuple):
        read_pairs(value)
        return value
    return expanded(value)


@register("multistep")
class MultiStep:
    """The learning rate follows the pairs of epoch and learning rate in --lr-schedule.

    Each pair gives the learning rate for the epochs before its own; the last one stays.
    `lr_schedule` is a list of `(epoch, rate)`, or a file of `epoch:rate` lines that is read again at
    each epoch, where `#` starts a comment. The rate `-` ends the run before the first epoch that it
    would serve. `base_lr` is not used.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "learning-rate policy multistep"
        lr_schedule: tuple[tuple[int, float | str], ...] | str | None = setting(
            None,
            "pairs of epoch and learning rate, such as (150, 5e-4), of which each holds until its epoch; or "
            "a file with lines of epoch:rate",
            value="PAIR|FILE",
            convert=_convert,
        )

    def __init__(self, base_lr: float, settings: MultiStep.Settings) -> None:
        if settings.lr_schedule is None:
            raise UserError("lr_policy multistep needs --lr-schedule: pairs such as (100, 1e-3), or a file")
        self.schedule = settings.lr_schedule
        self(0)

    def __call__(self, epoch: int) -> float | None:
        pairs = read_pairs(self.schedule) if isinstance(self.schedule, tuple) else _read_file(self.schedule)
        return next((rate for until, rate in pairs if epoch < until), pairs[-1][1])


def _read_file(path: str) -> Pairs:
    try:
        check_regular(path)  # read at each epoch, which no pipe can be
        lines = [line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        entries = [line.partition(":")[::2] for line in lines if line]
        pairs = read_pairs(tuple((int(e), "-" if r.strip() == "-" else float(r)) for e, r in entries))
    except OSError as error:
        raise UserError(f"cannot read {path}, the --lr-schedule: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}, the --lr-schedule: {error}; it wants lines such as 100:1e-3") from error
    if not pairs:
        raise UserError(f"{path}, the --lr-schedule, has no line such as 100:1e-3")
    return pairs
