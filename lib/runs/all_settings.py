"""The settings that every run has; those of the chosen components join them (`lib.config.config.resolve`)."""

from __future__ import annotations

from lib.config.command_flags import Command
from lib.datasets import DataSettings
from lib.datasets.disk_cache import CacheSettings
from lib.features import FeatureSettings
from lib.machine import devices
from lib.methods.method import MethodSettings
from lib.networks import NetworkSettings
from lib.networks.backbone import BackboneSettings
from lib.networks.freezing import TuningSettings
from lib.scoring.evaluation import EvaluationSettings
from lib.scoring.summary_over_seeds import PublishedSettings
from lib.session import SessionSettings
from lib.training.optimizers import OptimizerSettings
from lib.training.schedules import ScheduleSettings
from lib.training.trainer import TrainerSettings
from lib.transforms import LoaderSettings, TransformSettings, ViewSettings

SECTIONS = (
    Command, MethodSettings, DataSettings, TransformSettings, NetworkSettings, TuningSettings, BackboneSettings,
    FeatureSettings, OptimizerSettings, ScheduleSettings, TrainerSettings, EvaluationSettings, ViewSettings,
    SessionSettings, *devices.SECTIONS, LoaderSettings, CacheSettings, PublishedSettings,
)  # fmt: skip
