"""`lib.machine.devices`, `lib.machine.precision`, `lib.machine.random_seeds`, as it was called before."""

from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings

__all__ = ["DeviceSettings", "PrecisionSettings", "SeedSettings"]
