"""The one training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lib.checkpoints.background_writer import BackgroundWriter
from lib.config import pasted_commands
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.contracts import Method, Task
from lib.datasets import DataSettings
from lib.datasets.fingerprint import Fingerprint, fingerprint
from lib.datasets.folder_tree import counted
from lib.errors import Interrupted, RunStopped, UserError
from lib.machine import devices, precision, processes, random_seeds
from lib.machine.devices import DeviceSettings
from lib.machine.interrupts import Interrupts
from lib.methods import method_checks, weights
from lib.methods.batches import made
from lib.networks import backbone, freezing
from lib.networks.backbone import BackboneSettings
from lib.scoring import evaluation, metrics
from lib.scoring.evaluation import Outcome
from lib.session import METRICS, TRAINING, Session
from lib.training import optimizers, schedules
from lib.training.averaged_gradients import AveragedGradients
from lib.training.compiled_step import CompiledStep
from lib.training.nonfinite_numbers import Fault, Guard
from lib.training.optimizers import OptimizerSettings
from lib.training.run_length import RunLength
from lib.training.run_progress import RunProgress
from lib.training.running_means import Means
from lib.training.schedules import ScheduleSettings

BOUND = 0.995  # of the value at which a part of the loss says nothing
PATIENT = 3  # epochs in a row in which it does so, before a word
STOPPING = (
    "\nCtrl-C: the run stops after this step, and then saves its state. Press Ctrl-C again\n"
    "only to stop at once, which loses the steps since the last checkpoint.\n"
)


@dataclass(frozen=True)
class TrainerSettings(Section):
    title = "training"
    max_epochs: int | None = setting(
        200,
        "epochs to train; none = as many as make about 5,000 steps, from 20 to 500",
        unit="epochs",
        low=0,
        adaptive=True,
    )
    max_steps: int | None = setting(
        None, "steps after which training ends, if its epochs are not over before; none = no limit", unit="steps", low=0
    )
    display_freq: int = setting(80, "steps between two lines of progress", unit="steps", low=1)
    save_every_epochs: int = setting(
        1, "epochs between two checkpoints; the last epoch always has one", unit="epochs", low=1
    )
    save_every_steps: int | None = setting(
        None,
        "steps between two checkpoints within an epoch; none = no checkpoints within an epoch",
        unit="steps",
        low=1,
    )
    keep: int = setting(0, "number of saved epochs whose checkpoints are kept beside latest.ckpt", unit="epochs", low=0)
    eval_every: int = setting(1, "epochs between two evaluations; 0 = only one, at the end", unit="epochs", low=0)
    best_by: Literal["loss", "acc"] = setting(
        "loss",
        "what chooses best.ckpt among the saved epochs and the end; loss = the lowest training loss; acc "
        "= the highest accuracy of an evaluation, which takes labels and is an oracle's choice",
    )

    @property
    def epochs(self) -> int:
        """The epochs to train, once they are known."""
        assert self.max_epochs is not None
        return self.max_epochs


class Trainer:
    """Trains a task's method, and leaves what it learns in the session.

    Args:
        task: what is trained, on what.

    Raises:
        UserError: the optimiser or the schedule refuses its settings, or labels are needed and missing.
    """

    session: Session
    _writer: BackgroundWriter

    def __init__(self, task: Task) -> None:
        self.task = task
        self.method = task.method
        config = task.config
        self.config = config
        self.settings = config.of(TrainerSettings)
        self._parallel = AveragedGradients(task.method)
        self._compiled = self._compiled_step()
        self.optimizer = build_optimizer(task.method, config)
        self.schedule = build_schedule(config)
        self._rate: float | None = None  # of the epoch, before the warm-up
        self.epoch = 0  # finished epochs
        self.position = 0  # finished steps of the epoch that has begun
        self.step = 0  # finished steps in all
        self.best = math.inf
        self._is_first_step = True  # of this process
        self._scored_step = -1  # at which scores were last recorded
        device = devices.device(config.of(DeviceSettings))
        self._guard = Guard(self.optimizer, devices.defers(device))
        self._warmup = config.of(ScheduleSettings).warmup_steps
        self._loss: float | None = None  # of the last finished epoch, the part that `selection` names
        # For every picture, the cluster that it was last assigned to in training; −1: to none in this epoch.
        self._assigned = torch.full((len(task.pictures),), -1)
        self._notes = precision.remarks(device, task.method.precision)
        if task.method.remark:
            self._notes.append(task.method.remark)
        self._resumed: dict[str, int] | None = None
        self._fingerprint = fingerprint(task.pictures, config.of(DataSettings).data_root)
        self._means = Means()
        self._interrupts = Interrupts(agree=processes.largest, alone=processes.world() == 1)
        self._clock = 0.0
        self._progress = RunProgress(task, self.length)
        self._is_collapsed = False
        self._at_bound: dict[str, int] = {}  # part of the loss → epochs in a row in which it said nothing
        self._latest: tuple[int, Outcome] | None = None
        self._statistics: dict[str, Tensor] = {}  # under which the present weights were scored, if they were
        self._scored = next(iter(task.splits))
        if self.settings.best_by == "acc":
            self._check_choice()

    def _compiled_step(self) -> CompiledStep | None:
        settings = self.config.of(DeviceSettings)
        if not settings.compile or processes.world() > 1:
            return None
        batch_size = self.config.of(DataSettings).batch
        return CompiledStep(self.method, batch_size, devices.device(settings), lambda why: self.session.warn(why))

    def _check_choice(self) -> None:
        """Raises UserError where no accuracy can choose best.ckpt."""
        if why := metrics.unscored(self.task.splits[self._scored].labels):
            raise UserError(
                f"--best-by acc needs labels of two classes or more, and the split {self._scored} has none: {why}; "
                "take --best-by loss"
            )
        every = self.settings.eval_every
        epochs = self.settings.epochs
        if epochs and not 0 < every <= epochs:
            raise UserError(
                f"--best-by acc chooses among evaluated epochs, and with --eval-every {every} none of {epochs} is one; "
                f"give --eval-every 1 to {epochs}, or take --best-by loss"
            )

    def run(self, session: Session) -> Outcome:
        """Train to the end, and evaluate; everything is left in the session.

        Raises:
            Interrupted: a signal came; latest.ckpt has the state of that very step.
            RunStopped: the run diverged; where a step did it, fault.ckpt has the state before that step.
            UserError: a picture cannot be read, or the disk is full.
        """
        self.session = session
        if not session.is_member and not session.is_silent:
            self._interrupts.notice = STOPPING
        with BackgroundWriter() as self._writer, self._progress.shown(session, self.step):
            if self._resumed is not None:
                # First, so that latest.ckpt never counts lines that are gone.
                mark = session.reached(self._resumed)
                self._save("latest", mark=mark)
                self._writer.wait()
                session.rewind(mark)
                is_trained = self.step >= self.length.steps
                session.progress(
                    f"resumed after step {self.step:,}; finished epochs: {self.epoch} of {self.settings.epochs}"
                    f"{'; nothing is left to train' if is_trained else ''}"
                )
            if self.config.of(DeviceSettings).compile:
                how = self._compiled.describe() if self._compiled else "the network is compiled"
                session.info(f"step     {how}", indent=9)
            for note in self._notes:
                session.warn(note)
            with self._interrupts:
                try:
                    self._train()
                except Fault as fault:
                    raise self._record_fault(fault) from None
        assert self._latest is not None
        return self._latest[1]

    def _train(self) -> None:
        try:
            while self._begin_epoch():
                self._train_epoch()
            self._guard.check()
            if self._latest is None or self._latest[0] != self.step:
                self._predict()
            if self._scored_step != self.step:
                self._record_scores(self.epoch)
            self._interrupts.check()
            self._save(*(["best"] if self._ends_best() else []), "latest")
            self._writer.wait()
        except Interrupted as interrupted:
            if interrupted.midway:
                self._tell_how_to_resume("To resume this run from its last checkpoint:")
                raise
            self._guard.check()
            self._save("latest")
            self._writer.wait()
            processes.largest(0)  # no rank goes before the state is saved
            self._tell_how_to_resume("The state is saved. To resume this run:")
            raise Interrupted(interrupted.number, saved=True) from None

    def _tell_how_to_resume(self, title: str) -> None:
        folder = self.session.path
        if folder is None or self.session.is_member:
            return
        if (folder / "checkpoint" / "latest.ckpt").exists():
            self.session.evaluation(f"{title}\n  {pasted_commands.resume(folder, self.config)}")

    @property
    def length(self) -> RunLength:
        """Steps and evaluations of the whole run."""
        s = self.settings
        return RunLength(len(self.task.source), s.epochs, s.max_steps, s.eval_every)

    def _begin_epoch(self) -> bool:
        """Fix the rate of the next epoch; False where there is none."""
        s = self.settings
        if self.epoch >= s.epochs or (s.max_steps is not None and self.step >= s.max_steps):
            return False
        # Once an epoch: a schedule in a file may change, and all ranks take the same rate.
        self._rate = processes.from_first(lambda: self.schedule(self.epoch))
        return self._rate is not None

    def _train_epoch(self) -> None:
        freezing.begin(self.method, self.epoch)
        self.method.train()
        self._statistics = {}
        if self.position == 0:
            self.method.start_epoch(self.epoch)
            self._assigned.fill_(-1)
        self._clock = time.perf_counter()
        batches = self._interrupts.watch(self.task.source.epoch(self.epoch, self.position))
        for batch in self._progress.steps(batches, self.epoch, lambda: self._means):
            if len(batch.index) > 1 or not batch.left_out:
                self._train_step(batch)
            else:  # what remains is no batch
                self.position += 1
            self._writer.check()
            if self.step == self.settings.max_steps:
                break
            every = self.settings.save_every_steps
            if every and self.step % every == 0 and self.position < len(self.task.source):
                self._guard.check()
                self._save("latest")
        if self.position == len(self.task.source):
            self._finish_epoch()

    def _train_step(self, batch: Any) -> None:
        self._guard.keep(self.method, (self.step, self.position, self._means.copy()))
        set_rate(self.optimizer, self._rate, self.step, self._warmup)
        self.method.before_forward(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._forward(batch)
        method_checks.check_parts(self.method, parts)
        index = parts.pop("index", batch.index)
        cluster = parts.pop("cluster", None)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        if self._is_first_step:
            method_checks.check_weights(self.method, self.optimizer)
            self._is_first_step = False
        self.method.after_backward(self.step)
        self._guard.step(parts, batch.index)
        if cluster is not None:
            self._note(index, cluster)
        self.step += 1
        self.position += 1
        began = self._clock
        self._clock = time.perf_counter()
        self._means.add(parts, len(batch.index), self._clock - began)
        if self.step % self.settings.display_freq == 0:
            self._display()

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self._parallel(made(batch)) if self._compiled is None else self._compiled(batch)
        return parts

    def _note(self, index: Tensor, cluster: Tensor) -> None:
        self._assigned = self._assigned.to(cluster.device)  # where it stays, so that nothing waits
        index = devices.send(index, cluster.device)
        self._assigned[index] = torch.where(self._guard.faulty, self._assigned[index], cluster)

    def _finish_epoch(self) -> None:
        self._guard.check()
        means = self._means.values()
        self._means.wait(time.perf_counter() - self._clock)
        if self.method.selection not in means:
            raise UserError(
                "no batch of this epoch had two pictures that can be read; mend them, or take a larger --batch-size"
            )
        self._loss = means[self.method.selection]
        every = self.settings.eval_every
        evaluated = every > 0 and (self.epoch + 1) % every == 0
        # Predicting takes long and may be interrupted; what follows is short, and is not.
        if evaluated:
            self._predict()
        self._record_epoch(means)
        if evaluated:
            self._record_scores(self.epoch + 1)
        self.epoch = self.epoch + 1
        self.position = 0
        self._means = Means()
        if self.epoch % self.settings.save_every_epochs == 0:
            keep = partial(self.session.keep, self.epoch, self.settings.keep)
            # latest.ckpt counts on best.ckpt, so it is written last.
            self._save(*(["best"] if self._improves() else []), "latest", afterwards=keep)

    def _improves(self) -> bool:
        """Whether the present state is the best so far, which it is from then on."""
        criterion = self._criterion()
        is_better = criterion < self.best
        self.best = min(self.best, criterion)
        return is_better

    def _criterion(self) -> float:
        """Of the present state, the lower the better; infinite where there is none."""
        if self.settings.best_by == "loss":
            return math.inf if self._loss is None or self.position else self._loss
        current = self._latest[1].scores if self._latest and self._latest[0] == self.step else None
        accuracy = None if current is None else current[self._scored]["acc"]
        return math.inf if accuracy is None else -accuracy

    def _ends_best(self) -> bool:
        """Whether the end of the run, which may lie within an epoch or after one that was not saved, is its best state."""
        if self.step == 0:
            return False
        is_only = self.settings.best_by == "loss" and self.best == math.inf
        return self._improves() or is_only

    def _display(self) -> None:
        self._guard.check()
        means = self._means.values()
        self._progress.show(self._means)
        position = f"step {self.position}/{len(self.task.source)}"
        state = f"loss {means['loss']:.4f}, {self._means.rate():,.0f} images/s"
        self.session.record(f"epoch {self.epoch + 1}/{self.settings.epochs}, {position}: {state}")
        self.session.detail(f"epoch {self.epoch + 1} of {self.settings.epochs}, {position}: {state}")

    def _record_fault(self, fault: Fault) -> RunStopped:
        """Leave what is needed to look into a fault: the state before it, and the pictures of the last batches."""
        self.step, self.position, self._means = fault.place
        path = self.task.pictures.path
        recent = [index.tolist() for index in fault.recent]
        files = [str(path(position)) for position in recent[-1] if path(position) is not None]
        self.session.write_json(
            "fault.json",
            {"fault": str(fault), "step": self.step, "epoch": self.epoch, "recent": recent, "last_files": files},
        )
        self._save("fault")
        self._writer.wait()
        told = "fault.json and checkpoint/fault.ckpt tell more; " if self.session.path else ""
        return RunStopped(f"the run diverged: {fault} in step {self.step + 1}; {told}a lower --base-lr may help")

    def _record_epoch(self, means: dict[str, float]) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        points = {f"Train/Loss/{name}": value for name, value in means.items()}
        self.session.scalars(
            {**points, "Train/Learning_Rate": rate, "Train/Pictures_per_second": self._means.rate()}, self.step
        )
        shown = [name for name in means if name.endswith("/loss") or ("/" not in name and name != "loss")]
        parts = f" ({', '.join(f'{name} {means[name]:.3f}' for name in shown)})" if shown else ""
        done = {"epoch": self.epoch + 1, "step": self.step, "rate": rate}
        speed = {"seconds": self._means.seconds(), "pictures_per_second": self._means.rate()}
        self.session.append(TRAINING, {**done, **speed, **means})
        speed_part = f"{self._means.rate():,.0f} images/s"
        self.session.record(
            f"epoch {self.epoch + 1}/{self.settings.epochs}: loss {means['loss']:.4f}{parts}, "
            f"rate {rate:g}, {speed_part}"
        )
        left = self._progress.time_left()
        self.session.detail(
            f"epoch {self.epoch + 1} of {self.settings.epochs}: loss {means['loss']:.4f}, {speed_part}"
            + (f", {left}" if left else "")
        )
        self._warn_of_nothing_learnt(means)

    def _warn_of_nothing_learnt(self, means: dict[str, float]) -> None:
        """Once for each part of the loss, where it stays at the value that it has for images in all clusters alike."""
        is_last = self.epoch + 1 >= self.settings.epochs
        for name, nothing in self.method.uninformative().items():
            if name not in means:
                continue
            is_bound = means[name] >= BOUND * nothing
            self._at_bound[name] = self._at_bound.get(name, 0) + 1 if is_bound else 0
            if self._at_bound[name] == PATIENT or (is_last and 0 < self._at_bound[name] < PATIENT):
                self.session.record(f"{name} is {means[name]:.4f}, and {nothing:.4f} where nothing is learnt")
                self.session.warn(
                    f"nothing is learnt so far: the loss is as high ({means[name]:.3f} of {nothing:.3f}) as with every "
                    f"image in all clusters alike. If this stays, try a higher --base-lr, or another --seed."
                )

    def _predict(self) -> None:
        with self._progress.evaluating():
            outcome = evaluation.evaluate(self.task, self._interrupts.watch)
        online = partial(evaluation.online, self.task, self._assigned.cpu().numpy())
        scores = outcome.scores | processes.from_first(online)
        self._latest = (self.step, dataclasses.replace(outcome, scores=scores))
        self._statistics = outcome.statistics

    def _record_scores(self, epoch: int) -> None:
        assert self._latest is not None
        step = self._latest[0]
        scores = self._latest[1].scores
        for split, values in scores.items():
            self.session.append(METRICS, {"split": split, "epoch": epoch, "step": step, **values, "loss": self._loss})
            curves = {n: v for n, v in values.items() if isinstance(v, int | float)}
            self.session.scalars({f"Evaluate/{split}/{n}": v for n, v in curves.items()}, step)
            self.session.record(f"  {split}: {evaluation.line(values)}")
        self._scored_step = step
        first = scores[self._scored]
        left = "" if self.session.bar or step >= self.length.steps else self._progress.time_left()
        is_midway = 0 < self.position < len(self.task.source)
        place = f"step {step:,} of {self.length.steps:,}" if is_midway else f"epoch {epoch} of {self.settings.epochs}"
        self.session.evaluation(
            f"{place}: {self._scored} {evaluation.short(first, self._loss)}{f'; {left}' if left else ''}"
        )
        for split, values in scores.items():
            self.session.detail(evaluation.full(split, values))
        self._look_for_collapse(first, step)

    def _look_for_collapse(self, scores: Mapping[str, Any], step: int) -> None:
        """Warn when a collapse begins, and where the run ends with one."""
        is_last = step >= self.length.steps
        if self._is_collapsed and not is_last and metrics.collapsed(scores["entropy"], self.method.num_clusters):
            return
        was_collapsed = self._is_collapsed
        is_early = 2 * step < self.length.steps
        self._is_collapsed = evaluation.warn_of_collapse(self.session, scores, self.method, is_early)
        if was_collapsed and not self._is_collapsed:
            self.session.progress("the clusters are no longer collapsed")

    def _save(
        self, *names: str, mark: dict[str, int] | None = None, afterwards: Callable[[], object] = lambda: None
    ) -> None:
        paths = [path for path in map(self.session.checkpoint, names) if path is not None]
        if paths:
            here = {"mark": mark or self.session.mark(), "provenance": self.session.provenance}
            self._writer.save({**self.state_dict(), **here}, *paths, afterwards=afterwards)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values."""
        return {
            "config": self.config.as_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "best": self.best,
            "means": self._means.state_dict(),
            "scored_step": self._scored_step,
            "loss": self._loss,
            "pictures": self._fingerprint.pictures,
            "stamps": self._fingerprint.stamps,
            "trained": self._fingerprint.trained,
            "assigned": self._assigned.cpu(),
            "views": self.task.views.kind,
            "random": random_seeds.random_state(),
            "statistics": self._statistics,
            **backbone.stored(self.task.encode, self.config.of(BackboneSettings)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            UserError: the weights are of another network, or the images are others, or others of them are trained on.
        """
        try:
            earlier = Fingerprint(state["pictures"], state["stamps"], state.get("trained"))
            same_splits = self.config.as_dict()["train_splits"] == state["config"].get("train_splits")
            changed = self._fingerprint.changed(earlier, same_splits)
            backbone.adopt(self.task.encode, state)
            weights.load_state(self.method, state["method"], "the checkpoint")
            load_optimizer(self.optimizer, state["optimizer"])
            self.epoch, self.position, self.step = (int(state[name]) for name in ("epoch", "position", "step"))
            self._scored_step = int(state["scored_step"])
            self._assigned = torch.as_tensor(state["assigned"]).long()
            self._means.load_state_dict(state["means"])
            self._loss = None if state["loss"] is None else float(state["loss"])
            self._statistics = dict(state["statistics"])
            random_seeds.set_random_state(state["random"])
            self._resumed = {str(name): int(length) for name, length in state.get("mark", {}).items()}
            self._notes += self.config.changes(state["config"])
            before = state.get("views", "pil")
            now = self.task.views.kind
            if before != now:
                self._notes.append(
                    f"views: {before} before, {now} now; they differ by rounding (--tfm-backend {before})"
                )
            # Another criterion has another scale.
            best = float(state["best"])
            self.best = best if state["config"]["best_by"] == self.settings.best_by else math.inf
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"no run can go on from the checkpoint: {error!r}; --restart takes its weights") from error
        if not 0 <= self.position <= len(self.task.source) or self._assigned.shape != (len(self.task.pictures),):
            raise UserError("the checkpoint's place within its epoch is none; --restart takes its weights")
        if len(changed):
            first = self.task.pictures.path(int(changed[0]))
            count = counted(len(changed), "picture", "pictures")
            verb = "was" if len(changed) == 1 else "were"
            self._notes.append(f"{count} {verb} written since the run began, such as {first}")


def build_optimizer(method: Method, config: Config) -> Optimizer:
    settings = config.of(OptimizerSettings)
    component = optimizers.get(settings.optimizer)
    rate = config.of(ScheduleSettings).base_lr
    try:
        optimizer: Optimizer = component.build(
            method.parameter_groups(), rate, settings.optim_weight_decay, *config.extra(component)
        )
    except ValueError as error:  # such as Nesterov without momentum
        raise UserError(f"the optimizer {settings.optimizer} refuses its settings: {error}") from error
    return optimizer


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take the state of every weight, and keep the settings and the layout that the optimiser was built with."""
    built = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, built, strict=True):
        group.update(own)
    for weight, held in optimizer.state.items():
        for name, value in held.items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                # A fused step walks through memory: what belongs together must lie alike.
                held[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def build_schedule(config: Config) -> schedules.Schedule:
    settings = config.of(ScheduleSettings)
    component = schedules.get(settings.lr_policy)
    schedule: schedules.Schedule = component(settings.base_lr, *config.extra(component))
    return schedule


def set_rate(optimizer: Optimizer, rate: float | None, step: int, warmup: int) -> None:
    if rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = schedules.warmed_up(rate, step, warmup) * group.get("lr_scale", 1)
