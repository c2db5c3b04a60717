"""Settings that were left open, and follow from how many images there are, the network or the processor."""

from __future__ import annotations

from typing import Any

from lib import networks
from lib.config.config import Config
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError
from lib.features import FeatureSettings
from lib.machine import devices, precision, processes
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.methods.method import number_if_given
from lib.networks import NetworkSettings
from lib.training.trainer import TrainerSettings
from lib.transforms import TransformSettings

LEAST_BATCHES = 8  # in an epoch
SMALLEST_BATCH = 16
LARGEST_BATCH = 256
STEPS = 5_000  # of the main head, at most
LEAST_EPOCHS = 20
MOST_EPOCHS = 500
MOST_NEIGHBOURS = 20


def settled(config: Config, pictures: Pictures) -> Config:
    """The same with a value for each setting that was left open, but for means and deviations that are measured later.

    Raises:
        UserError: a size is `none`, and the network proposes none.
    """
    count = len(pictures.index(pictures.train[-1]))
    trainer = config.of(TrainerSettings)
    size = config.of(DataSettings).batch_size or batch_size(count)
    number = config.of(FeatureSettings).feature_neighbours or neighbours(count, number_if_given(config))
    is_open = trainer.max_epochs is None
    return config.replace(
        **proposed(config.of(TransformSettings), config.of(NetworkSettings)),
        precision=arithmetic(config.of(PrecisionSettings), config.of(DeviceSettings)),
        batch_size=size,
        max_epochs=epochs(count, size, trainer.max_steps or STEPS) if is_open else trainer.max_epochs,
        feature_neighbours=number,
    )


def batch_size(count: int) -> int:
    """The largest power of two of which `count` images make 8, between 16 and 256, and at most all of them.

    A little more where the last batch would be a single image, which has no variance.
    """
    largest = 1 << max(1, count // LEAST_BATCHES).bit_length() - 1
    size = min(max(SMALLEST_BATCH, min(LARGEST_BATCH, largest)), max(2, count))
    while count % size == 1 and size < count:
        size += 1
    return size


def epochs(count: int, size: int, steps: int = STEPS) -> int:
    """What makes about 5,000 batches of `size`, or `steps` if these are fewer, of `count` images; 20 to 500."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, round(min(STEPS, steps) * size / max(1, count))))


def neighbours(count: int, clusters: int | None) -> int:
    """Half as many as a cluster has images on average, between 1 and 20; of ten clusters if it is not known how many."""
    return min(MOST_NEIGHBOURS, max(1, count // (2 * (clusters or 10))))


def proposed(transforms: TransformSettings, network: NetworkSettings) -> dict[str, Any]:
    """The sizes, means and deviations that are `none`, as the network proposes them, by the names of their settings.

    A size that is given moves what it is cut out of in proportion. Grey images take the average of the channels.

    Raises:
        UserError: a size is `none`, and the network proposes none.
    """
    own = networks.own(network.network)
    values = dict[str, Any]()
    for name in ("tfm_size", "tfm_resize"):
        if getattr(transforms, name) is None and own.size is None:
            raise UserError(f"{name} is none, and the network {network.network} has no size of its own; give {name}")
    if own.size is not None:
        size = own.size if transforms.tfm_size is None else transforms.tfm_size
        resize = round(size * (own.resize or own.size) / own.size)
        values |= {"tfm_size": size, "tfm_resize": resize if transforms.tfm_resize is None else transforms.tfm_resize}
    for name, channels in (("tfm_means", own.means), ("tfm_stds", own.stds)):
        if channels is not None and getattr(transforms, name) is None:
            is_same = network.net_cin == len(channels)
            values[name] = channels if is_same else (sum(channels) / len(channels),) * network.net_cin
    return values


def arithmetic(settings: PrecisionSettings, device: DeviceSettings) -> str:
    """The precision: `auto` is bfloat16 where the first rank's device computes in it, else float32."""
    if settings.precision != "auto":
        return settings.precision
    where = devices.device(device)
    is_lowered = processes.from_first(lambda: precision.computes_in_bf16(where))
    return "bf16" if is_lowered else "fp32"
