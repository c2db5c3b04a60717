"""`lib.networks.backbone`."""

from lib.networks.backbone import *  # noqa: F403
