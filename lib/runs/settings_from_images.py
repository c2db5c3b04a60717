"""Settings that were left open, and follow from how many pictures there are, the network or the processor."""

from __future__ import annotations

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

BATCHES = 8  # in an epoch, at least
SMALLEST = 16
LARGEST = 256  # pictures in a batch
STEPS = 5_000  # of the main head, at most
FEWEST = 20
MOST = 500  # epochs


def counted(config: Config, pictures: Pictures) -> Config:
    """The same with what was left open: batch size, epochs and neighbours follow from the training pictures.

    Raises:
        UserError: from `seen`.
    """
    config = precise(seen(config))
    count = len(pictures.index(pictures.train[-1]))
    size = config.of(DataSettings).batch_size
    number = config.of(TrainerSettings).max_epochs
    size = batch_size(count) if size is None else size
    known = config.of(FeatureSettings).feature_neighbours
    return config.replace(
        batch_size=size,
        max_epochs=epochs(count, size, config.of(TrainerSettings).max_steps or STEPS) if number is None else number,
        feature_neighbours=neighbours(count, number_if_given(config)) if known is None else known,
    )


def batch_size(count: int) -> int:
    """The largest power of two of which so many pictures make 8, between 16 and 256, and at most all of them.

    A little more where the last batch would be a single picture, which has no variance.
    """
    largest = 1 << max(1, count // BATCHES).bit_length() - 1
    size = min(max(SMALLEST, min(LARGEST, largest)), max(2, count))
    while count % size == 1 and size < count:
        size += 1
    return size


def epochs(count: int, size: int, steps: int = STEPS) -> int:
    """What makes about 5,000 batches of `size`, or `steps` if these are fewer, of so many pictures; 20 to 500."""
    return min(MOST, max(FEWEST, round(min(STEPS, steps) * size / max(1, count))))


def neighbours(count: int, clusters: int | None) -> int:
    """Half as many as a cluster has pictures on average, between 1 and 20; of ten clusters if it is not known how many."""
    return min(20, max(1, count // (2 * (clusters or 10))))


def seen(config: Config) -> Config:
    """The same with sizes; those that are `none`, and means and deviations, are what the network declares, if it does.

    A size that is given moves what it is cut out of in proportion. Grey pictures take the average of the channels.

    Raises:
        UserError: a size is `none`, and the network has none of its own.
    """
    settings = config.of(TransformSettings)
    network = config.of(NetworkSettings)
    own = networks.own(network.network)
    found = dict[str, object]()
    for name in ("tfm_size", "tfm_resize"):
        if getattr(settings, name) is None and own.size is None:
            raise UserError(f"{name} is none, and the network {network.network} has no size of its own; give {name}")
    if own.size is not None:
        size = own.size if settings.tfm_size is None else settings.tfm_size
        resize = round(size * (own.resize or own.size) / own.size)
        found |= {"tfm_size": size, "tfm_resize": resize if settings.tfm_resize is None else settings.tfm_resize}
    for name, values in (("tfm_means", own.means), ("tfm_stds", own.stds)):
        if values is not None and getattr(settings, name) is None:
            found[name] = values if network.net_cin == len(values) else (sum(values) / len(values),) * network.net_cin
    return config.replace(**found)


def precise(config: Config) -> Config:
    """The same with a precision: `auto` is bfloat16 where the first rank's device computes in it, else float32."""
    if config.of(PrecisionSettings).precision != "auto":
        return config
    device = devices.device(config.of(DeviceSettings))
    lowered = processes.from_first(lambda: precision.computes_in_bf16(device))
    return config.replace(precision="bf16" if lowered else "fp32")
