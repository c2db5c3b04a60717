from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lib.config.settings import Section, setting
from lib.contracts import Request
from lib.datasets import DataSettings
from lib.features.views import open_views
from lib.machine import processes
from lib.machine.random_seeds import SeedSettings
from lib.methods import batches, method
from lib.transforms import TransformSettings, plain_recipe
from lib.transforms.channel_statistics import measured
from pica.data import recipes  # an original and a perturbed view, as the tfm_… settings have them


@dataclass(frozen=True)
class Settings(Section):
    title = "method iic"
    bound = True  # a checkpoint brings its own value
    iic_copies: int = setting(1, "perturbed copies of each picture", low=1)
    iic_lamda: float = setting(1.0, "weight of the clusters' entropy; 1: the mutual information", low=0)


class Source:
    def __init__(self, views, chosen, recipes, config):
        self.views, self.chosen, self.recipes, self.seed = views, chosen, recipes, config.of(SeedSettings).seed
        self.size = min(config.of(DataSettings).batch, len(chosen))  # what remains at the end of an epoch is dropped

    def __len__(self):
        return len(self.chosen) // self.size

    def epoch(self, index, start=0):
        order = np.random.default_rng((self.seed, index)).permutation(self.chosen)
        parts = (torch.from_numpy(order[step * self.size :][: self.size]) for step in range(start, len(self)))
        return batches.stream(self.views, (Request(part, self.recipes, index) for part in parts))

    def blank(self, empty):
        return batches.ViewBatch(torch.arange(self.size), [empty(recipe, self.size) for recipe in self.recipes])

    def describe(self):
        return [f"{len(self.chosen):,} pictures, {len(self)} steps of {self.size} in {len(self.recipes)} views"]


class IIC(method.Method):
    """N pictures, K clusters: the clusters of two views of a picture are to tell each other."""

    def __init__(self, network, num_clusters, lamda):
        super().__init__()
        self.network, self.num_clusters, self.lamda = network, num_clusters, lamda
        norm = nn.BatchNorm1d(network.feature_dim, affine=False)  # one scale, whatever the network
        self.head = nn.Sequential(norm, nn.Linear(network.feature_dim, num_clusters))

    def classify(self, features):
        return self.head(features).softmax(dim=1)

    def forward(self, batch):
        p, *copies = map(self.classify, processes.gather_views(self.encode(batch.views), batch.counts))  # (N, K) each
        joint = sum(p.T @ q + q.T @ p for q in copies).clamp_min(1e-9) / (2 * len(p) * len(copies))  # (K, K)
        alone = joint.sum(dim=0, keepdim=True).log()
        return {"loss": (joint * (self.lamda * (alone + alone.T) - joint.log())).sum()}


def build(config, pictures):
    built, encode = method.assemble(config, pictures)
    config = measured(config, pictures)
    transforms, index = config.of(TransformSettings), pictures.index(pictures.train[-1])
    plain, (_, perturbed) = plain_recipe(transforms), recipes(transforms)
    copies = (perturbed,) * config.of(Settings).iic_copies
    views = open_views(config, pictures, encode, plain, copies)
    source = Source(views, index, (plain, *copies), config)
    return method.Task(built.place(config), source, views, pictures, perturbed, config, encode)


def model(config, network):
    return IIC(network, method.number_of_clusters(config), config.of(Settings).iic_lamda)


method.register("iic", method.Entry(build, model, Settings, "mutual information of two views (Ji et al., 2019)"))
