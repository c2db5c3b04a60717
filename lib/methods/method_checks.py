"""Checks of what the author of a method writes: its settings, views, loss and probabilities; each ends in one line."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lib.config.settings import Section
from lib.contracts import Method, Recipe
from lib.errors import UserError

PAGE = "as docs/extend.md shows"
NO_PARTS = ("cluster", "index")  # what a forward pass may give beside the loss and its parts
TOLERANCE = 0.01  # of a row's sum; bfloat16 rounds it by up to 0.004


def check_settings(name: str, settings: Any) -> None:
    """See that settings can be read from flags and files.

    Args:
        name: of the method.
        settings: its `Settings`.

    Raises:
        UserError: they are no `Section`, no dataclass, or a field is not made by `setting`.
    """
    title = f"the settings of the method {name}, {getattr(settings, '__qualname__', settings)},"
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        raise UserError(f"{title} are no Section; write `class Settings(Section)`, {PAGE}")
    # `dataclass` replaces each field by its default.
    has_open_field = any(isinstance(value, dataclasses.Field) for value in vars(settings).values())
    if not dataclasses.is_dataclass(settings) or has_open_field:
        raise UserError(f"{title} are no dataclass; write `@dataclass(frozen=True)` above the class, {PAGE}")
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            raise UserError(f"{title} have the field {field.name} without `setting`; give it one, {PAGE}")


def check_class(component: Any) -> None:
    """See that a method's class leaves none of its functions open.

    Raises:
        UserError: one is missing.
    """
    missing = sorted(getattr(component, "__abstractmethods__", ()))
    if missing:
        names = " and no ".join(f"`{name}`" for name in missing)
        source = inspect.getmodule(component)
        place = f" ({source.__file__})" if source is not None else ""
        raise UserError(f"the method {component.__name__} has no {names}{place}; write it, {PAGE}")


def checked_recipes(method: Method, value: Any) -> tuple[Recipe, ...]:
    """What `views` gives, as a tuple.

    Raises:
        UserError: it is not several recipes, or a place among them is asked for that is none.
    """
    remedy = "return a tuple, such as `(original(transforms), perturbed(transforms))`"
    if not isinstance(value, Iterable):
        raise _mistake(method, "views", f"gives {_shown(value)}, not a tuple of recipes", remedy)
    recipes = tuple(value)
    if not recipes:
        raise _mistake(method, "views", "gives no recipe", remedy)
    others = [recipe for recipe in recipes if not isinstance(recipe, Recipe)]
    if others:
        raise _mistake(method, "views", f"gives {_shown(others[0])} among its recipes", remedy)
    place: int = getattr(method, "perturbed_view", -1)
    if not -len(recipes) <= place < len(recipes):
        raise _mistake(
            method, "views", f"gives {len(recipes)} recipes, and perturbed_view is {place}", "let it name one of them"
        )
    return recipes


def check_parts(method: Method, parts: Any) -> None:
    """See that a forward pass gives a loss and its parts; only types and dimensions are looked at.

    Raises:
        UserError: there is no loss, it or a part is not one number, or it has no gradient.
    """
    if not isinstance(parts, dict):
        raise _mistake(method, _objective(method), f"gives {_shown(parts)}, not a dict", f"return a dict, {PAGE}")
    if "loss" not in parts:
        names = ", ".join(map(str, parts)) or "nothing"
        raise _mistake(method, _objective(method), f'gives a dict without "loss" (it has {names})', "add it")
    for name, value in parts.items():
        if name not in NO_PARTS and (not isinstance(value, Tensor) or value.dim()):
            raise _mistake(
                method, _objective(method), f'gives {_shown(value)} as "{name}", not a tensor of one number',
                "make it one, such as the mean over the images",
            )  # fmt: skip
    if not parts["loss"].requires_grad:
        raise _mistake(
            method, _objective(method), "gives a loss without a gradient, so nothing is learnt",
            "compute it from the features and the weights, without `detach`, `no_grad` or `argmax`",
        )  # fmt: skip


def check_weights(method: Method, optimizer: Optimizer) -> None:
    """See that the optimiser has every weight that the first step gave a gradient.

    Raises:
        UserError: it lacks one, such as a weight that was made in that step.
    """
    trained = {weight for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in method.named_parameters():
        if weight.grad is not None and weight not in trained:
            raise UserError(
                f"the method {type(method).__name__}: the optimizer lacks the weight `{name}`, which the first step "
                "gave a gradient; make every weight in `__init__`, and let `parameter_groups`, if you wrote it, give it"
            )


def check_classify(method: Method, shape: tuple[int, ...]) -> None:
    """See, before anything is trained, that `classify` gives probabilities of the clusters.

    A copy classifies two made-up images, so that the method stays as it is. What it raises, or cannot compute before it
    is trained, is passed over here; the first scoring looks again.

    Args:
        method: on the CPU.
        shape: of what its network takes, for one image.

    Raises:
        UserError: it gives something else.
    """
    images = torch.linspace(-1, 1, 2 * torch.Size(shape).numel()).view(2, *shape)
    kept = {id(weight): weight for weight in method.network.parameters()}  # large, and not copied
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial = copy.deepcopy(method, kept).train(False)
            probability: Any = trial.classify(trial.features(images))
    except Exception:  # whatever an untrained method raises
        return
    check_shape(method, probability, len(images))
    if probability.isfinite().all():
        check_sums(method, probability)


def check_shape(method: Method, probability: Any, count: int) -> None:
    """See that `classify` gives a row of K numbers for each image.

    Raises:
        UserError: it gives something else.
    """
    wanted = (count, method.num_clusters)
    if not isinstance(probability, Tensor) or tuple(probability.shape) != wanted:
        raise _mistake(
            method, "classify", f"gives {_shown(probability)} for {count} images, not a tensor of shape {wanted}",
            f"return a probability for each image and cluster, {PAGE}",
        )  # fmt: skip


def check_sums(method: Method, probability: Tensor) -> None:
    """See that each row of (N, K) is one of probabilities.

    Raises:
        UserError: a number is negative, or a row does not sum to 1.
    """
    sums = probability.float().sum(dim=1)
    is_row = ((sums - 1).abs() <= TOLERANCE) & (probability >= 0).all(dim=1)
    if not is_row.all():
        first = int((~is_row).nonzero()[0])
        row = f"a row sums to {float(sums[first]):.3g}, its smallest number is {float(probability[first].min()):.3g}"
        raise _mistake(method, "classify", f"gives no probabilities: {row}", "end it in `.softmax(dim=1)`")


def _objective(method: Method) -> str:
    """The function that the author wrote for the loss."""
    for kind in type(method).__mro__:
        for name in ("forward", "loss"):
            if name in vars(kind):
                return name
    return "forward"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if inspect.isroutine(value):
        return f"the function `{value.__name__}`"
    return f"a value of type {type(value).__name__}"


def _mistake(method: Method, part: str, what: str, remedy: str) -> UserError:
    """What a part of a method gives, where it is written, and what to do."""
    code = getattr(inspect.unwrap(getattr(type(method), part)), "__code__", None)
    place = f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""
    return UserError(f"the method {type(method).__name__}: `{part}` {what}{place}; {remedy}")
