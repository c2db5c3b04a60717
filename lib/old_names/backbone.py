"""`lib.networks.backbone`, as it was called before."""

from lib.networks.backbone import Backbone, Features

__all__ = ["Backbone", "Features"]
