"""The layers of the aggregation of features at key points, and the features of all cameras.

Source: HorizonRobotics/Sparse4D c41df4b, models/blocks.py.
Glossary: N cameras, L levels, C channels, G groups of channels, S cells of all maps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmcv.cnn.bricks.registry import ATTENTION, PLUGIN_LAYERS
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from torch import Tensor, nn

from mm2onnx_driving.layers.sparse_instances.blocks import normalised_layers
from mm2onnx_driving.layers.sparse_instances.steps import feature_rows, map_sizes
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


class Features(NamedTuple):
    """The feature maps of all cameras and levels in one tensor.

    Attributes:
        rows: (1, S, C), camera by camera, level by level, row by row.
        spatial_shapes: (N, L, 2) int32, height and width of each map.
        level_start_index: (N, L) int32, where each map begins in S.
    """

    rows: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor


def flatten_maps(maps: Sequence[Tensor]) -> Features:
    """Return feature maps of each level (N, C, h, w) as one tensor."""
    sizes = map_sizes([level.shape[-2:] for level in maps], len(maps[0]))
    return Features(feature_rows(maps), *(values.to(maps[0].device) for values in sizes))


@registered_if_named(ATTENTION)
class DeformableFeatureAggregation(BaseModule):
    """Layers of key points and their weights, which `steps.gather` runs."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_groups: int = 8,
        num_levels: int = 4,
        num_cams: int = 6,
        kps_generator: dict | None = None,
        use_deformable_func: bool = False,
        use_camera_embed: bool = False,
        residual_mode: str = 'add',
        **training: Any,
    ) -> None:
        super().__init__()
        if not use_deformable_func or not use_camera_embed or residual_mode != 'cat':
            raise ConfigError(
                f'DeformableFeatureAggregation: use_deformable_func={use_deformable_func}, use_camera_embed='
                f"{use_camera_embed}, residual_mode={residual_mode!r}; expected True, True and 'cat', as in "
                f'Sparse4D v3'
            )
        self.num_groups, self.num_levels, self.num_cams = num_groups, num_levels, num_cams
        self.kps_generator = build_from_cfg(dict(kps_generator, embed_dims=embed_dims), PLUGIN_LAYERS)
        self.num_pts = self.kps_generator.num_pts
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.camera_encoder = nn.Sequential(*normalised_layers(embed_dims, 1, 2, 12))
        self.weights_fc = nn.Linear(embed_dims, num_groups * num_levels * self.num_pts)
