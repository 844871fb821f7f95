"""The aggregation of features at the key points of instances, as upstream runs it.

An anchor is x, y, z of the centre (m), logarithms of length, width and height, sine and cosine of the yaw,
and velocity in x, y and z (m/s), in the LiDAR frame.

Glossary: B batch, N cameras, L levels, A instances, P key points, C channels, G groups of channels, S cells
of all maps.

Source of names, shapes and algorithm: HorizonRobotics/Sparse4D c41df4b, models/blocks.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.registry import ATTENTION, PLUGIN_LAYERS
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.ops.deformable_aggregation import aggregate
from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.sparse4d.blocks import normalised_layers

NEAREST_DEPTH = 1e-5
"""A smaller depth of a point, m, is taken for this one when the point is projected."""


class Features(NamedTuple):
    """The feature maps of all cameras and levels in one tensor.

    Attributes:
        rows: (B, S, C), camera by camera, level by level, row by row.
        spatial_shapes: (N, L, 2) int32, height and width of each map.
        level_start_index: (N, L) int32, where each map begins in S.
    """

    rows: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor


def flatten_maps(maps: Sequence[Tensor]) -> Features:
    """Return feature maps of each level (B, N, C, h, w) as one tensor."""
    rows = torch.cat([level.flatten(3).transpose(2, 3) for level in maps], 2)  # (B, N, cells, C)
    sizes = torch.tensor([tuple(level.shape[-2:]) for level in maps], dtype=torch.int32)
    sizes = sizes[None].expand(rows.shape[1], -1, -1)
    areas = sizes.prod(-1).flatten()
    starts = (areas.cumsum(0) - areas).to(torch.int32).reshape(sizes.shape[:2])
    return Features(rows.flatten(1, 2), sizes.to(rows.device), starts.to(rows.device))


@registered_if_named(ATTENTION)
class DeformableFeatureAggregation(BaseModule):
    """Key points of instances, their weights, and the features that they gather.

    Args:
        embed_dims, num_groups, num_levels, num_cams: C, G, L, N.
        use_deformable_func, use_camera_embed, residual_mode: True, True and 'cat', as in the published
            configs; a ConfigError refuses others.
        kps_generator: config of the key points, not None.
        training: options that training alone reads.
    """

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

    def forward(
        self,
        feature: Tensor,
        anchor: Tensor,
        embedding: Tensor,
        features: Features,
        projection: Tensor,
        image_wh: Tensor,
    ) -> Tensor:
        """Return the projected sum of what the key points gather, beside the features (B, A, 2 C).

        Args:
            feature: of the instances (B, A, C).
            anchor: (B, A, 11).
            embedding: of the anchors (B, A, C).
            features: of the pictures.
            projection: (B, N, 4, 4), LiDAR frame to pixels times depth.
            image_wh: (B, N, 2), width and height of the network input, to whose pixels `projection` leads.
        """
        points = self.kps_generator(anchor, feature)
        locations = self.project(points, projection, image_wh).permute(0, 2, 3, 1, 4)
        weights = self.weights_of(feature + embedding, projection)
        gathered = tap('dfa', aggregate(*features, locations.contiguous(), weights.contiguous()))
        return torch.cat([self.output_proj(gathered), feature], -1)

    def weights_of(self, queries: Tensor, projection: Tensor) -> Tensor:
        """Return the weights (B, A, P, N, L, G), which sum to 1 over points, cameras and levels.

        Args:
            queries: features and embeddings of the instances, added (B, A, C).
            projection: (B, N, 4, 4), see `forward`.
        """
        cameras = self.camera_encoder(projection[..., :3, :].flatten(2))  # (B, N, C)
        logits = self.weights_fc(queries[:, :, None] + cameras[:, None])  # (B, A, N, L P G)
        shares = logits.flatten(2).unflatten(2, (-1, self.num_groups)).softmax(2)
        split = self.num_cams, self.num_levels, self.num_pts
        return shares.unflatten(2, split).permute(0, 1, 4, 2, 3, 5)

    @staticmethod
    def project(points: Tensor, projection: Tensor, image_wh: Tensor) -> Tensor:
        """Return where points are in the pictures (B, N, A, P, 2): x and y in shares of width and height.

        `aggregate` leaves out those that are not between 0 and 1, as of points beside or behind a camera.
        `points` are (B, A, P, 3) in the LiDAR frame, m; `projection` and `image_wh` are those of `forward`.
        """
        homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
        projected = (projection[:, :, None, None] @ homogeneous[:, None, ..., None])[..., 0]
        pixels = projected[..., :2] / projected[..., 2:3].clamp(min=NEAREST_DEPTH)
        return pixels / image_wh[:, :, None, None]
