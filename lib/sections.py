"""The settings that every run has; those of the chosen components join them (`lib.config.resolve`)."""

from __future__ import annotations

from lib import runtime
from lib.backbone import BackboneSettings
from lib.command import Command
from lib.datasets import DataSettings
from lib.datasets.cache import CacheSettings
from lib.evaluation import EvaluationSettings
from lib.features import FeatureSettings
from lib.method import MethodSettings
from lib.networks import NetworkSettings
from lib.optimizers import OptimizerSettings
from lib.schedules import ScheduleSettings
from lib.session import SessionSettings
from lib.summary import PublishedSettings
from lib.trainer import TrainerSettings
from lib.transforms import LoaderSettings, TransformSettings, ViewSettings
from lib.tuning import TuningSettings

SECTIONS = (
    Command, MethodSettings, DataSettings, TransformSettings, NetworkSettings, TuningSettings, BackboneSettings,
    FeatureSettings, OptimizerSettings, ScheduleSettings, TrainerSettings, EvaluationSettings, ViewSettings,
    SessionSettings, *runtime.SECTIONS, LoaderSettings, CacheSettings, PublishedSettings,
)  # fmt: skip
