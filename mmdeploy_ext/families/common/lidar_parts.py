"""Parts of a LiDAR detector by common names, and hooks on them."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.spec.preparation import VoxelRule


@dataclasses.dataclass(frozen=True)
class Parts:
    """The modules of a detector from points to raw outputs, in running order.

    Attributes:
        prefix: prefix of their names in the model: 'pts_' or ''.
        voxel_layer: points to voxels.
        voxel_encoder: points of each voxel to features.
        middle_encoder: voxels to the bird's-eye view.
        backbone: of the bird's-eye view.
        neck: of its maps, or None.
        head: gives the raw outputs.
    """

    prefix: str
    voxel_layer: nn.Module
    voxel_encoder: nn.Module
    middle_encoder: nn.Module
    backbone: nn.Module
    neck: nn.Module | None
    head: nn.Module


def prefix_of(model: Mapping[str, Any]) -> str:
    return 'pts_' if 'pts_voxel_encoder' in model else ''


def parts_of(model: nn.Module) -> Parts:
    prefix = 'pts_' if hasattr(model, 'pts_voxel_encoder') else ''
    names = ('voxel_layer', 'voxel_encoder', 'middle_encoder', 'backbone', 'neck', 'bbox_head')
    return Parts(prefix, *(getattr(model, prefix + name, None) for name in names))


def encode(encoder: nn.Module, features: Tensor, coordinates: Tensor) -> Tensor:
    """Return the bird's-eye view (1, C, H, W) of features (N, D) at coordinates (N, 4): sample 0, and cell.

    The cell is z, y, x for mmdet3d's encoders, x, y, z for BEVFusion's.
    """
    tested = dict(test_mode=True) if 'test_mode' in inspect.signature(encoder.forward).parameters else {}
    return bev_of(encoder(features, coordinates, 1, **tested))


def bev_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class OfModel(nn.Module):
    """The base of modules that run parts of a detector; parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


Hook = Callable[[tuple[Tensor, ...], Any], dict[str, Any]]
"""(positional inputs, output) of a module -> values by name."""


@contextlib.contextmanager
def collected(hooks: Mapping[nn.Module, Hook]) -> Iterator[dict[str, Any]]:
    """Collect the values of `hooks` when their modules run inside the block."""
    values: dict[str, Any] = {}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        values.update(hooks[module](inputs, output))

    with contextlib.ExitStack() as stack:
        for module in hooks:
            stack.enter_context(module.register_forward_hook(collect))
        yield values


NEEDED = ('point_cloud_range', 'voxel_size', 'max_num_points')


def rule_of_layer(layer: Mapping[str, Any], channels: int, order: str) -> VoxelRule:
    """Return the rule of mmcv's `Voxelization` arguments, for points of `channels` values.

    Of two limits of voxels the second (of tests) counts; mmcv's default is 20,000.
    """
    if missing := [name for name in NEEDED if layer.get(name) is None]:
        raise ConfigError(f'the voxel layer has no {", ".join(missing)}')
    max_voxels, max_points = layer.get('max_voxels', 20000), int(layer['max_num_points'])
    max_voxels = int(max_voxels[1] if isinstance(max_voxels, list | tuple) else max_voxels)
    return VoxelRule(
        point_cloud_range=tuple(map(float, layer['point_cloud_range'])),
        voxel_size=tuple(map(float, layer['voxel_size'])),
        max_points=max_points,
        max_voxels=max_voxels,
        order=order,
        in_channels=channels,
        mode='dynamic' if -1 in (max_points, max_voxels) else 'hard',
    )


def grid_size(layer: Mapping[str, Any], key: str) -> tuple[int, int, int]:
    if missing := [name for name in NEEDED if layer.get(name) is None]:
        raise ConfigError(f'{key} has no {", ".join(missing)}')
    limits, sizes = layer['point_cloud_range'], layer['voxel_size']
    counts = np.subtract(limits[3:], limits[:3]) / sizes
    cells = np.rint(counts).astype(int)
    if (np.abs(counts - cells) > 1e-3).any() or min(cells) < 1:
        raise ConfigError(
            f'{key}: point_cloud_range={list(limits)} has {counts.round(3).tolist()} voxels of '
            f'voxel_size={list(sizes)} along x, y, z; expected whole numbers'
        )
    return tuple(cells.tolist())
