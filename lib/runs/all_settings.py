"""The settings that every run has, and those that `--help` shows first.

Settings of the chosen components join them (`lib.config.config.resolve`).
"""

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

EVERYDAY = {
    "what to run": {
        "cfgs": "YAML files with settings; later ones override",
        "dry_run": "train nothing; show time, memory and sizes",
        "list": "show methods, data sets, networks, optimizers",
        "help": "show this text; with all, every setting",
    },
    "your images": {
        "data_root": "folder of the images",
        "num_clusters": "number of clusters; several: one run each",
        "labels": "CSV of file,class; it only scores the result",
        "on_bad_image": "what an unreadable image does",
    },
    "training": {
        "gpus": "GPUs, such as 0 or 0,1; without it, the CPU",
        "max_epochs": "epochs to train",
        "batch_size": "images in a step",
        "precision": "arithmetic of the network",
        "seed": "seed of every random draw; else a random one",
        "seeds": "one run for each seed, such as 0-4; a summary",
        "resume": "continue a run; auto = the newest like this one",
    },
    "a trained model, instead of training": {
        "evaluate": "score the model of this checkpoint",
        "predict": "cluster the images of --data-root by this model",
        "copy_to": "copy the images into a folder per cluster",
        "export": "with --evaluate: write .safetensors or .onnx",
    },
    "output": {
        "session_root": "folder of all sessions",
        "session": "name of the folder in it; else the time in UTC",
        "open": "show the report in the browser at the end",
        "brief": "show only evaluations and warnings",
        "verbose": "show a line for each epoch, and all scores",
    },
}  # title of a group → {name of a setting: its text in the short help}

EXAMPLES = (
    (
        "cluster 1,797 handwritten digits: minutes on a CPU",
        "python main.py --cfgs configs/base.yaml configs/digits.yaml",
    ),
    (
        "see first what a run on your own images would take",
        "python main.py --cfgs configs/base.yaml configs/cpu/pica.yaml --data-root FOLDER --num-clusters 10 --dry-run",
    ),
    (
        "the same images by the features of a network that was trained on ImageNet",
        "python main.py --cfgs configs/imc_swav/base.yaml configs/imc_swav/pretrained.yaml --data-root FOLDER "
        "--num-clusters 10",
    ),
    (
        "put other images into the clusters of a finished run",
        "python main.py --predict sessions/NAME/checkpoint/latest.ckpt --data-root FOLDER --copy-to NEW",
    ),
)  # what it does, and the command
