"""What the parts of a run promise each other; nothing here builds anything.

`Views` turn positions of images into views on the device. A `Source` is a method's order of batches. A `Method` is a
network with its objective. A `Task` holds them together. The trainer never opens a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from lib.config.config import Config
    from lib.datasets import Pictures


@dataclass(frozen=True)
class Recipe:
    """A view, stated once, whichever back end makes it: crop, flip, colour jitter and grayscale, in this order; normalising follows.

    The crops:
        center:  shorter side to `resize`, then the square of side `size` in the middle
        random:  the same, the square anywhere
        resized: a rectangle of a random area (`scale`, share of the picture's) and shape (`ratio`,
                 width / height), straight from the raw picture, resized to `size`
    """

    size: int  # px, side of the result
    crop: Literal["center", "random", "resized"]  # as above
    resize: int = 0  # px, not used by "resized"
    scale: tuple[float, float] = (0.08, 1.0)  # of "resized"; smallest and largest share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of "resized"; smallest and largest width / height
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue
    jitter_probability: float = 1.0  # of a change of colours
    grayscale: float = 0.0  # probability
    flip: float = 0.0  # probability


@dataclass(frozen=True)
class NeighbourRecipe(Recipe):
    """The same view, of one of the image's nearest neighbours, which is drawn anew in each epoch."""

    @property
    def of_image(self) -> Recipe:
        """The view without the neighbour."""
        return Recipe(**vars(self))


@dataclass(frozen=True)
class Request:
    """The images of one batch: one view for each recipe.

    A view's random draw depends on (seed, epoch, number of the image, position among the recipes) and on nothing else.
    A source that visits an image several times an epoch counts each visit as an epoch of its own.
    """

    index: Tensor  # (N,) positions among the run's images; one may come twice
    recipes: tuple[Recipe, ...]  # V, one for each view
    epoch: int = 0  # that the draws depend on
    drawn_as: Tensor | None = None  # (N,) numbers that stand for the images in the draws; none: their positions
    first_copy: int = 0  # the position of the first recipe, where these recipes are some of a batch's

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(N,) what stands for each image in the draws."""
        numbers: NDArray[np.int64] = (self.index if self.drawn_as is None else self.drawn_as).numpy()
        return numbers

    def rows(self, rows: NDArray[Any]) -> Request:
        """The same of some of the images: a mask (N,), or numbers of rows."""
        chosen = torch.from_numpy(rows)
        return replace(
            self, index=self.index[chosen], drawn_as=None if self.drawn_as is None else self.drawn_as[chosen]
        )


@dataclass(frozen=True)
class Prepared:
    """What became of a request."""

    index: Tensor  # (N,) those of the images that could be read
    views: Sequence[Tensor]  # for each recipe (N, C, H, W), or (N, feature_dim) behind a frozen backbone


class Views(Protocol):
    """What turns positions of images into views on the device."""

    @property
    def skipped(self) -> dict[int, str]:
        """Positions of images that were left out so far, and why (`on_bad_image skip`)."""

    kind: str
    """Which back end."""

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        """The views of each request.

        Raises:
            UserError: an image cannot be read; with `on_bad_image skip` it is left out, if need be all of a request.
        """

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        """One view, under the test transform, for each (N,) of positions."""

    def prepare(self, folder: Path | None = None) -> None:
        """Do at once what takes long and is done once, and would otherwise be done when it is first needed.

        Args:
            folder: of the session, where what belongs to one run is kept; none: it is not kept.

        Raises:
            UserError: an image cannot be read, or what is kept cannot be written.
        """

    def describe(self) -> str:
        """What makes the views, in a line."""

    def close(self) -> None:
        """End whatever prepares images in the background."""


class Batch(Protocol):
    """What the trainer knows of a batch; its method knows more, such as `lib.methods.batches.ViewBatch`."""

    @property
    def index(self) -> Tensor:
        """(N,) positions of the images of all processes, on the CPU."""

    @property
    def left_out(self) -> int:
        """Images of the batch that could not be read."""


class Source(Protocol):
    """A method's order of batches."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on; their order depends on (seed, index) alone."""

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> Any:
        """A batch of full size without content, for estimates; `empty` makes a view of so many images."""

    def describe(self) -> list[str]:
        """What an epoch consists of, a line each."""


class Method(nn.Module, ABC):
    """A network with its objective.

    `forward` takes a batch and gives {"loss": …} and its parts; where it assigns images to clusters on the way, also
    `cluster`, (n,), of the batch's images, or of those at `index`, (n,).
    """

    network: nn.Module
    """Images, or the features of a frozen backbone → (N, feature_dim). Of several processes each passes its own, while
    their BatchNorm is one; what is computed after `lib.machine.processes.gather` is the same in each."""

    num_clusters: int
    """K."""

    full_name: str = ""
    """For people: its name, authors and year; empty: the name by which it is registered."""

    remedy: str = "a --base-lr below {base_lr:g}, fewer clusters (--num-clusters), or another --seed"
    """What a user can do where the clusters collapse or nothing is learnt."""

    frees_clusters: bool = False
    """Whether clusters that are empty in the first epochs often fill later."""

    pretrained_configs: tuple[str, ...] = ()
    """The files that train it on the features of a pretrained network, in the order of `--cfgs`."""

    light_configs: tuple[str, ...] = ()
    """The same for a light network that is trained from scratch on a CPU."""

    selection: str = "loss"
    """The part of the loss whose epoch mean, the lower the better, chooses best.ckpt."""

    treatments: tuple[str, ...] = ("plain",)
    """BatchNorm statistics under which the method is scored (`lib.scoring.evaluation`); the first gives the result."""

    precision: str = "fp32"
    """Of the network (`lib.machine.precision.PrecisionSettings`)."""

    remark: str = ""
    """What to know of the way in which it computes, if anything."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, feature_dim); not below float32, whatever the network computes in."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """(N, feature_dim) → (N, K) cluster probabilities."""

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K) cluster probabilities."""
        return self.classify(self.features(images))

    def compiles(self, batch: Any) -> bool:
        """Whether `forward` of this batch is a function of its views alone, whose operations are the same in each step."""
        return True

    def words_for(self, *clusters: int) -> list[str]:
        """What a command line adds to the settings of this method's run for other numbers of clusters."""
        return ["--num-clusters", *map(str, clusters)]

    def uninformative(self) -> dict[str, float]:
        """For parts of the loss: the value at which a part says nothing, such as log K."""
        return {}

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser gets: everything that is not frozen for ever; `lr_scale`: factor of a group's rate."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, the first being 0.

        A run that resumes within an epoch does not call it. One that stopped before the first step calls it again.
        """

    def idle_parameters(self, batch: Any) -> Iterable[nn.Parameter]:
        """Those that get no gradient in the step with this batch, beside what is frozen; called before its forward.

        Several processes average the gradients of the others while the backward pass still runs.
        """
        return ()

    def before_forward(self, step: int) -> None:
        """Called before each training forward, with the number of finished steps, which is 0 at first."""

    def after_backward(self, step: int) -> None:
        """Called between the backward pass and the optimiser, with the same number."""


@dataclass(frozen=True)
class Split:
    """The images that one score is about."""

    index: NDArray[np.int64]  # (N,) positions among the run's images
    labels: NDArray[np.int64]  # (N,) −1 where unknown


@dataclass(frozen=True)
class Task:
    """What is trained, scored or used to predict."""

    method: Method  # on its device
    source: Source  # of the training batches
    views: Views  # of all images of the run
    pictures: Pictures  # the images, and which are trained on and scored
    perturbed: Recipe  # a random view, as the training takes it
    config: Config  # all settings, with those that were left to the images
    encode: nn.Module = field(default_factory=nn.Identity)  # a frozen backbone, which the views have passed

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """What is scored."""
        return {name: self._split(name) for name in self.pictures.scored}

    @property
    def trained_name(self) -> str:
        """The split that is trained on; of several heads, the last one's."""
        return self.pictures.train[-1]

    @cached_property
    def trained(self) -> Split:
        """The images of that split."""
        return self._split(self.trained_name)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return self.pictures.labels()

    def _split(self, name: str) -> Split:
        index = self.pictures.index(name)
        return Split(index, self._labels[index])
