"""Seeded weights of BEVFusion for the classes of a repository."""

import dataclasses

import torch

from mmdeploy_ext.families.bevfusion.fork import SPARSE_ENCODER
from mmdeploy_ext.weights.sparse_layouts import decide_layouts, find_kernels


def weights_of_repository(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> weight for a repository's classes, perhaps of another spconv."""
    weights = model.state_dict()
    shapes = model.fork.process.call('weight_shapes', {})
    encoder = model.encoders['lidar'].encoder if 'lidar' in model.sensors else torch.nn.Module()
    kernels = {f'{SPARSE_ENCODER}.{key}': kernel for key, kernel in find_kernels(encoder).items()}
    repository_shapes = {key: tuple(map(int, shapes[key])) for key in kernels if key in shapes}
    layouts = decide_layouts(model.fork.root, repository_shapes, kernels, 'auto')
    for key, layout in layouts.items():
        weights[key] = dataclasses.replace(kernels[key], layout=layout).convert(
            weights[key], kernels[key].layout
        )
    return weights
