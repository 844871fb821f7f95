"""The layers of Sparse4D's decoder: anchors, refinement, feed-forward network, key points, aggregation.

`steps.py` runs layers without a `forward`. An anchor is x, y, z (m, of the centre), logarithms of length,
width and height, sine and cosine of the yaw, not normalised, velocity in x, y and z (m/s), in the LiDAR
frame.

Source: HorizonRobotics/Sparse4D c41df4b, models/detection3d/detection3d_blocks.py and models/blocks.py.
Glossary: B batch, A instances, N cameras, L levels, C channels, G groups of channels, S cells of all maps, K
classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.registry import ATTENTION, FEEDFORWARD_NETWORK, PLUGIN_LAYERS, POSITIONAL_ENCODING
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from torch import Tensor, nn

from mm2onnx_driving.layers.sparse_instances.steps import (
    CENTRE,
    LOG_SIZE,
    NUMBERS,
    VELOCITY,
    feature_rows,
    map_sizes,
)
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

BEGINS_AT_CENTRE = ((0.0, 0.0, 0.0),)
"""Default fixed key points of a generator: the centre of the box."""


def normalised_layers(channels: int, inner: int, outer: int, inputs: int | None = None) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = channels if inputs is None else inputs
    for _ in range(outer):
        for _ in range(inner):
            layers += [nn.Linear(width, channels), nn.ReLU(inplace=True)]
            width = channels
        layers.append(nn.LayerNorm(channels))
    return layers


class Scaled(nn.Module):
    """Learned factors of an anchor's numbers."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(numbers))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale


@registered_if_named(POSITIONAL_ENCODING)
class SparseBox3DEncoder(BaseModule):
    """Anchors to embeddings: a network each for place, sizes, yaw and velocity.

    Args:
        embed_dims: channels of the four networks; C is their sum.
        vel_dims, mode, output_fc: must be 3, 'cat' and False (ConfigError), not the defaults.
        in_loops, out_loops: see `normalised_layers`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        vel_dims: int = 3,
        mode: str = 'add',
        output_fc: bool = True,
        in_loops: int = 1,
        out_loops: int = 2,
    ) -> None:
        super().__init__()
        if mode != 'cat' or output_fc or vel_dims != NUMBERS - VELOCITY.start:
            raise ConfigError(
                f'SparseBox3DEncoder: mode={mode!r}, output_fc={output_fc}, vel_dims={vel_dims}; expected '
                f"'cat', False and 3, as in Sparse4D v3"
            )
        names = ('pos_fc', 3), ('size_fc', 3), ('yaw_fc', 2), ('vel_fc', vel_dims)
        for (name, numbers), channels in zip(names, embed_dims, strict=True):
            layers = normalised_layers(channels, in_loops, out_loops, numbers)
            self.add_module(name, nn.Sequential(*layers))


@registered_if_named(PLUGIN_LAYERS)
class SparseBox3DRefinementModule(BaseModule):
    """Corrects anchors, and scores them."""

    def __init__(
        self,
        embed_dims: int = 256,
        output_dim: int = NUMBERS,
        num_cls: int = 10,
        normalize_yaw: bool = False,
        refine_yaw: bool = False,
        with_cls_branch: bool = True,
        with_quality_estimation: bool = False,
    ) -> None:
        super().__init__()
        if normalize_yaw or not refine_yaw or not with_quality_estimation or output_dim != NUMBERS:
            raise ConfigError(
                f'SparseBox3DRefinementModule: normalize_yaw={normalize_yaw}, refine_yaw={refine_yaw}, '
                f'with_quality_estimation={with_quality_estimation}, output_dim={output_dim}; expected '
                f'False, True, True and {NUMBERS}, as in Sparse4D v3'
            )
        last = [nn.Linear(embed_dims, output_dim), Scaled(output_dim)]
        self.layers = nn.Sequential(*normalised_layers(embed_dims, 2, 2), *last)
        if with_cls_branch:
            self.cls_layers = nn.Sequential(
                *normalised_layers(embed_dims, 1, 2), nn.Linear(embed_dims, num_cls)
            )
        self.quality_layers = nn.Sequential(*normalised_layers(embed_dims, 1, 2), nn.Linear(embed_dims, 2))


@registered_if_named(FEEDFORWARD_NETWORK)
class AsymmetricFFN(BaseModule):
    """Feed-forward network; the shortcut begins after its norm."""

    def __init__(
        self,
        in_channels: int,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        num_fcs: int = 2,
        pre_norm: dict | None = None,
        act_cfg: dict | None = None,
        add_identity: bool = True,
        **training: Any,
    ) -> None:
        super().__init__()
        if num_fcs != 2 or pre_norm is None or not add_identity or (act_cfg or {}).get('type') != 'ReLU':
            raise ConfigError(
                f'AsymmetricFFN: num_fcs={num_fcs}, pre_norm={pre_norm}, add_identity={add_identity}, '
                f'act_cfg={act_cfg}; expected 2 layers with ReLU behind a norm, and a shortcut'
            )
        self.pre_norm = nn.LayerNorm(in_channels)
        first = nn.Sequential(nn.Linear(in_channels, feedforward_channels), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(first, nn.Linear(feedforward_channels, embed_dims))
        same = feedforward_channels == embed_dims  # as upstream, whatever the input's channels
        self.identity_fc = nn.Identity() if same else nn.Linear(in_channels, embed_dims)

    def forward(self, feature: Tensor) -> Tensor:
        """Return (B, A, embed_dims) of (B, A, in_channels)."""
        normed = self.pre_norm(feature)
        return self.identity_fc(normed) + self.layers(normed)


@registered_if_named(PLUGIN_LAYERS)
class SparseBox3DKeyPointsGenerator(BaseModule):
    """Key points of an instance: at fixed and at learned places in its box.

    Args:
        embed_dims: C.
        num_learnable_pts: number of learned points.
        fix_scale: fixed places (n, 3), in shares of the sizes from the centre; a parameter of checkpoints.
            None: the centre alone.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_learnable_pts: int = 0,
        fix_scale: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        places = torch.tensor([*(fix_scale or BEGINS_AT_CENTRE)], dtype=torch.float32)
        self.fix_scale = nn.Parameter(places, requires_grad=False)
        self.num_pts = len(places) + num_learnable_pts
        if num_learnable_pts:
            self.learnable_fc = nn.Linear(embed_dims, 3 * num_learnable_pts)

    @staticmethod
    def anchor_projection(anchor: Tensor, motion: Tensor, seconds: Tensor) -> Tensor:
        """Return anchors (B, A, 11) in the LiDAR frame of a moment `seconds` (B,) later.

        `motion` (B, 4, 4) goes to the later frame. As upstream, for trained weights, cosine and sine of the
        turned yaw are in the columns of sine and cosine.
        """
        turn = motion[:, None, :3, :3]
        moved = anchor[..., CENTRE] + anchor[..., VELOCITY] * seconds[:, None, None]
        centre = (turn @ moved[..., None])[..., 0] + motion[:, None, :3, 3]
        cosine_sine = (turn[..., :2, :2] @ anchor[..., [7, 6]][..., None])[..., 0]
        velocity = (turn @ anchor[..., VELOCITY, None])[..., 0]
        return torch.cat([centre, anchor[..., LOG_SIZE], cosine_sine, velocity], -1)


@registered_if_named(PLUGIN_LAYERS)
class DenseDepthNet(BaseModule):
    """Parameters of the depth branch of training."""

    def __init__(self, embed_dims: int = 256, num_depth_layers: int = 1, **training: Any) -> None:
        super().__init__()
        self.depth_layers = nn.ModuleList(nn.Conv2d(embed_dims, 1, 1) for _ in range(num_depth_layers))


# ---- aggregation of features at key points, and the features of all cameras


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
