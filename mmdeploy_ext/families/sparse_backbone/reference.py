"""The encoder on spconv, unpatched: what a proof compares the graphs with."""

import numpy as np
import torch

from mmdeploy_ext import compat
from mmdeploy_ext.families.sparse_backbone.graphs import encoder


def voxel_layer(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module of a detector that makes voxels of points."""
    return model.pts_voxel_layer if hasattr(model, 'pts_voxel_layer') else model.voxel_layer


def run_encoder(model: torch.nn.Module, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return the map that the encoder gives of voxels, in PyTorch on one thread."""
    with compat.single_thread(), torch.no_grad():
        dense = encoder(model)(torch.from_numpy(features), torch.from_numpy(coordinates), 1)
    return dense.numpy()
