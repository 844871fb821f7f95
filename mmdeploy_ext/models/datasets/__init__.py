"""Data sets, pipeline steps and samplers of the 3D families; importing registers them."""

from . import pipelines, samplers
from .nuscenes_dataset import CustomNuScenesDataset, FusionNuScenesDataset

__all__ = ['CustomNuScenesDataset', 'FusionNuScenesDataset', 'pipelines', 'samplers']
