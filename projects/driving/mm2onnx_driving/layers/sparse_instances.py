"""The layers of Sparse4D's decoder: anchors, refinement, feed-forward network, key points, aggregation.

`steps.py` runs layers without a `forward`. An anchor is x, y, z (m, of the centre), logarithms of length,
width and height, sine and cosine of the yaw, not normalised, velocity in x, y and z (m/s), in the LiDAR
frame.

Source: HorizonRobotics/Sparse4D c41df4b, models/detection3d/detection3d_blocks.py and models/blocks.py.
Glossary: B batch, A instances, N cameras, L levels, C channels, G groups of channels, S cells of all maps, K
classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.registry import ATTENTION, FEEDFORWARD_NETWORK, PLUGIN_LAYERS, POSITIONAL_ENCODING
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.operators.attention import multi_head
from mmdeploy_ext.upstream.operators.deformable_aggregation import aggregate

# Sparse4D from feature maps to refined instances, on the modules of the user's model or ours.
#
# An anchor is a box (`blocks.py`), or with SparseDrive a polyline: x, y (m) of each point.
#
# Source: HorizonRobotics/Sparse4D c41df4b, models/{sparse4d_head,instance_bank,blocks}.py and
# models/detection3d/detection3d_blocks.py; swc-17/SparseDrive ec0225d, models/map/map_blocks.py.
# Glossary: N cameras, L levels, A instances of a frame, M remembered instances, P key points, G groups, C
# channels, K classes, S cells of all maps. Anchors: see `blocks.py`.


CENTRE, LOG_SIZE, YAW, VELOCITY = slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 11)
SINE, COSINE, NUMBERS = 6, 7, 11
NEAREST_DEPTH = 1e-5
"""Least depth of a projected point, m."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The features of a frame, and its rig.

    Attributes:
        rows: (1, S, C), camera by camera, level by level, row by row.
        sizes, starts: (N, L, 2) height and width of each map, and (N, L) where it begins in S; int32.
        lidar2img: (N, 4, 4), LiDAR frame to pixels times depth.
        image_wh: (N, 2), width and height, pixels.
        grid_sample: GridSample instead of gathers in a graph of standard operators.
    """

    rows: Tensor
    sizes: Tensor
    starts: Tensor
    lidar2img: Tensor
    image_wh: Tensor
    grid_sample: bool = False


@dataclasses.dataclass(frozen=True)
class Remembered:
    """The instances of the last frame, as a frame gets them.

    Attributes:
        feature: (1, M, C).
        anchor: (1, M, 11), in the present LiDAR frame.
        is_near: (1,) bool, whether they become instances of this frame; they are attended to in any case.
        exists: (1,) bool, False at a first frame, where other attributes are any finite values; None: always.
    """

    feature: Tensor
    anchor: Tensor
    is_near: Tensor
    exists: Tensor | None = None


def feature_rows(maps: Sequence[Tensor]) -> Tensor:
    """Return `Pictures.rows` of maps (N, C, h, w)."""
    # each map by itself: ONNX Runtime turns it while it leaves the layout of its convolutions
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], 1).flatten(0, 1)[None]


def map_sizes(shapes: Sequence[Sequence[int]], cameras: int) -> tuple[Tensor, Tensor]:
    """Return `Pictures.sizes` and `starts` of maps of `shapes` h, w."""
    sizes = torch.tensor([tuple(shape) for shape in shapes], dtype=torch.int32)
    areas = sizes.prod(-1).repeat(cameras)
    starts = areas.cumsum(0) - areas
    return sizes.repeat(cameras, 1, 1), starts.to(torch.int32).reshape(cameras, -1)


def embed(encoder: nn.Module, anchor: Tensor) -> Tensor:
    """Return the embeddings (1, A, C) of anchors."""
    if not hasattr(encoder, 'vel_fc'):
        return encoder.pos_fc(anchor)
    embeddings = [
        encoder.pos_fc(anchor[..., CENTRE]),
        encoder.size_fc(anchor[..., LOG_SIZE]),
        encoder.yaw_fc(anchor[..., YAW]),
        encoder.vel_fc(anchor[..., VELOCITY]),
    ]
    return torch.cat(embeddings, -1)


def key_points(generator: nn.Module, anchor: Tensor, feature: Tensor) -> Tensor:
    """Return the key points (A, P, 3), m, LiDAR frame, of anchors with features (1, A, C)."""
    if hasattr(generator, 'fix_height'):
        return line_points(generator, anchor, feature)
    shares = generator.fix_scale[None].expand(anchor.shape[1], -1, -1)
    if getattr(generator, 'learnable_fc', None) is not None:
        learned = generator.learnable_fc(feature)[0].reshape(anchor.shape[1], -1, 3)
        shares = torch.cat([shares, learned.sigmoid() - 0.5], 1)
    x, y, z = (shares * anchor[0, :, None, LOG_SIZE].exp()).unbind(-1)
    sine, cosine = anchor[0, :, SINE, None], anchor[0, :, COSINE, None]
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], -1)
    return turned + anchor[0, :, None, CENTRE]


def line_points(generator: nn.Module, anchor: Tensor, feature: Tensor) -> Tensor:
    heights = anchor.new_tensor(generator.fix_height) + generator.ground_height
    offsets = generator.learnable_fc(feature)[0].unflatten(
        -1, (-1, len(heights), generator.num_learnable_pts, 2)
    )
    places = anchor[0].unflatten(-1, (-1, 1, 1, 2)) + offsets
    levels = heights[:, None, None].expand(*places.shape[:-1], 1)
    return torch.cat([places, levels], -1).flatten(1, 3)


def project(points: Tensor, lidar2img: Tensor, image_wh: Tensor) -> Tensor:
    """Return where points (A, P, 3) are in the pictures (A, P, N, 2): x, y in shares of the sides."""
    matrix, shift = lidar2img[:, :3, :3].flatten(0, 1), lidar2img[:, :3, 3].flatten()
    projected = torch.nn.functional.linear(points, matrix, shift).unflatten(-1, (-1, 3))
    depth = projected[..., 2:]
    depth = torch.maximum(depth, torch.full_like(depth, NEAREST_DEPTH))
    return projected[..., :2] / depth / image_wh


def point_weights(layer: nn.Module, query: Tensor, lidar2img: Tensor) -> Tensor:
    """Return the weights (1, A, P, N, L, G) of key points, summing to 1 per group and instance.

    `query` (1, A, C) is features plus embedding. The layer is linear: instances and cameras pass it one by
    one, not as A N pairs.
    """
    linear, groups = torch.nn.functional.linear, layer.num_groups
    rows = torch.arange(layer.weights_fc.out_features).reshape(-1, layer.num_pts, groups)
    rows = rows.permute(2, 0, 1).flatten()
    weight, bias = layer.weights_fc.weight[rows], layer.weights_fc.bias[rows]
    cameras = linear(layer.camera_encoder(lidar2img[:, :3].flatten(1)), weight)
    of_cameras = cameras.unflatten(-1, (groups, -1)).transpose(0, 1)  # (G, N, L P)
    logits = linear(query, weight, bias)[0].unflatten(-1, (groups, 1, -1)) + of_cameras  # (A, G, N, L P)
    weights = logits.flatten(2).softmax(2).unflatten(2, (len(lidar2img), -1, layer.num_pts))
    return weights[None].permute(0, 1, 5, 3, 4, 2)


def gather(
    layer: nn.Module, feature: Tensor, anchor: Tensor, embedding: Tensor, pictures: Pictures
) -> Tensor:
    """Return the projected sum of samples at key points, beside the features (1, A, 2 C)."""
    points = key_points(layer.kps_generator, anchor, feature)
    locations = project(points, pictures.lidar2img, pictures.image_wh)
    weights = point_weights(layer, feature + embedding, pictures.lidar2img)
    gathered = aggregate(
        pictures.rows, pictures.sizes, pictures.starts, locations[None], weights, pictures.grid_sample
    )
    return torch.cat([layer.output_proj(tap('dfa', gathered)), feature], -1)


def is_decoupled(head: nn.Module) -> bool:
    """Whether positions are further channels of queries and keys, and not added to them."""
    return not isinstance(head.fc_before, nn.Identity)


def with_position(head: nn.Module, feature: Tensor, position: Tensor) -> Tensor:
    return torch.cat([feature, position], -1) if is_decoupled(head) else feature + position


def attend(
    head: nn.Module,
    layer: nn.Module,
    feature: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Return features (B, A, C) of features and their positions, by keys and values of 2 C or C channels."""
    attention, query = layer.attn, with_position(head, feature, position)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    mixed = multi_head((query, keys, values), weight, bias, attention.num_heads, mask)
    identity = query if is_decoupled(head) else feature
    return head.fc_after(identity + attention.out_proj(mixed))


def refine(
    layer: nn.Module, feature: Tensor, anchor: Tensor, embedding: Tensor, time_interval: Tensor
) -> Tensor:
    """Return the corrected anchors; a box's velocity steps are metres per `time_interval` (1,)."""
    step = layer.layers(feature + embedding)
    if not hasattr(layer, 'quality_layers'):
        return anchor + step
    velocity = step[..., VELOCITY] / time_interval
    return anchor + torch.cat([step[..., : VELOCITY.start], velocity], -1)


def best_rows(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores, and their indices (1, count), best first."""
    return tuple(scores.topk(count, 1))


def take_over(feature: Tensor, anchor: Tensor, logits: Tensor, last: Remembered) -> list[Tensor]:
    """Return features and anchors of the last frame's instances, then the best of this frame.

    Without a near last frame (1, A, C) and (1, A, 11) stay unchanged; `logits` (1, A, K) rank instances.
    """
    _, best = best_rows(logits.amax(-1), anchor.shape[1] - last.anchor.shape[1])
    near = last.is_near if last.exists is None else last.is_near & last.exists
    pairs = ((last.feature, feature), (last.anchor, anchor))
    return [
        torch.where(near[:, None, None], torch.cat([last_rows, rows[:, best[0]]], 1), rows)
        for last_rows, rows in pairs
    ]


class LastFrame:
    """Keys and values of the attention to the last frame's instances.

    At a first frame instances attend to themselves, with values that skip `fc_before`, as upstream.

    Attributes:
        last: the instances; None in a graph of a first frame.
        mask: (1, 1, 1, A) bool, True for a key that is left out: rows behind M with a last frame; None if the
            graph knows.
        position: (1, M, C) embeddings of the last frame's anchors; after later refinements `run_head`
            replaces them by the first M anchors' of this frame, as upstream, even if the last frame is not
            near.
        values: (1, M, 2 C or C), or None.
    """

    def __init__(self, head: nn.Module, last: Remembered | None, instances: int) -> None:
        self.head, self.last = head, last
        self.mask = None
        if last is None:
            return
        self.position = embed(head.anchor_encoder, last.anchor)
        self.values = head.fc_before(last.feature)
        if last.exists is not None:
            row = torch.arange(instances, device=last.feature.device)
            self.mask = (last.exists & (row >= last.anchor.shape[1]))[None, None, None]

    def keys_and_values(self, feature: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (1, A or M, 2 C or C); without a last frame those of the queries."""
        query = with_position(self.head, feature, position)
        own = query, query if is_decoupled(self.head) else feature
        if self.last is None:
            return own
        keys = with_position(self.head, self.last.feature, self.position)
        if self.last.exists is None:
            return keys, self.values
        missing = query.shape[1] - keys.shape[1]
        exists = self.last.exists[:, None, None]
        return tuple(
            torch.where(exists, torch.nn.functional.pad(rows, (0, 0, 0, missing)), of_query)
            for rows, of_query in zip((keys, self.values), own, strict=True)
        )


def run_head(
    head: nn.Module,
    pictures: Pictures,
    time_interval: Tensor | None,
    last: Remembered | None,
    learned: tuple[Tensor, Tensor] | None = None,
    title: str = '',
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return features (1, A, C), anchors, class logits (1, A, K) and quality logits (1, A, 2), if there are.

    `time_interval` is (1,) seconds, for boxes; `last` None in a graph of a first frame, `learned` the first
    features (1, A, C) and anchors, by default the head's; `title` goes before the names of taps.
    """
    bank, operations = head.instance_bank, head.operation_order
    feature, anchor = learned or (bank.instance_feature[None], bank.anchor[None])
    position, done = embed(head.anchor_encoder, anchor), 0
    memory = LastFrame(head, last, anchor.shape[1])
    for number, (kind, layer) in enumerate(zip(operations, head.layers, strict=True)):
        if kind == 'gnn':
            keys, values = with_position(head, feature, position), head.fc_before(feature)
            feature = attend(head, layer, feature, position, keys, values, None)
        elif kind == 'temp_gnn':
            keys, values = memory.keys_and_values(feature, position)
            feature = attend(head, layer, feature, position, keys, values, memory.mask)
        elif kind == 'deformable':
            feature = gather(layer, feature, anchor, position, pictures)
        elif kind == 'refine':
            done += 1
            anchor = tap(f'{title}refined_{done}', refine(layer, feature, anchor, position, time_interval))
            if done == head.num_single_frame_decoder and last is not None:
                logits = tap(f'{title}first_logits', layer.cls_layers(feature))
                feature, anchor = take_over(feature, anchor, logits, last)
            if number == len(operations) - 1:
                feature = tap(f'{title}instance_feature', feature)
                quality = (
                    layer.quality_layers(feature + position) if hasattr(layer, 'quality_layers') else None
                )
                return feature, anchor, layer.cls_layers(feature), quality
            position = embed(head.anchor_encoder, anchor)
            if done > head.num_single_frame_decoder and last is not None:
                memory.position = position[:, : last.anchor.shape[1]]
        else:
            feature = layer(feature)
    raise AssertionError('the last operation of a checked head is a refinement')


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
