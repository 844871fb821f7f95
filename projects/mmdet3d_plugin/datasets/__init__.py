"""Data sets, pipeline steps and samplers of the 3D families; importing registers them."""

from . import pipelines, samplers
from .fusion_dataset import FusionNuScenesDataset
from .nuscenes_dataset import CustomNuScenesDataset

__all__ = ['CustomNuScenesDataset', 'FusionNuScenesDataset', 'pipelines', 'samplers']
