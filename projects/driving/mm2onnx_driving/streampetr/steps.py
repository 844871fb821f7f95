"""The steps of a frame of StreamPETR's head and the rays of its tokens: pure functions.

Source: exiawsh/StreamPETR 95f6470, models/dense_heads/streampetr_head.py, models/utils/positional_encoding.py
(`pos2posemb1d`, `pos2posemb3d`, `nerf_positional_encoding`), models/utils/misc.py (`locations`).
Glossary: B batch, N cameras, T tokens, D depths, C channels, Q queries, M, n rows of the memory, L decoder
layers, K classes.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mm2onnx_driving.layers.query_decoder import frustum_points, lidar_points, point_encoding, sine_encoding
from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.base.taps import tap

# The temporal memory: rows of past detections, and rigid motion between their frames.
#
# While a frame is computed, rows are in the present LiDAR frame. Between frames the state is kept in two
# ways:
# - global (the published model): `pre_update(memory, ego_pose_inv, timestamp)`, the frame, `push`,
#   `move(memory, ego_pose, -timestamp)`;
# - local (the deploy contract): `pre_update(memory, ego_motion, delta_t)`, the frame, `push`; the state
# stays
#   in the LiDAR frame of the last frame, with ages for times, so that no number grows with the drive.
#
# Source: exiawsh/StreamPETR 95f6470, streampetr_head.py `pre_update_memory` and `post_update_memory`;
# differs
# in: stale rows are deselected instead of multiplied by zero, so that NaN in them cannot survive a reset.
# Glossary: B batch, n rows, C channels, P pseudo points.


class Memory(NamedTuple):
    """Rows of past detections, the newest first.

    Attributes:
        embedding: (B, n, C) decoder outputs.
        reference_point: (B, n, 3) box centres in m, in the state's frame.
        timestamp: (B, n, 1) s; the age, in the global state the negative absolute time of the row's origin.
        egopose: (B, n, 4, 4) from the LiDAR frame of the row's origin to the state's frame.
        velo: (B, n, 2) m/s in the LiDAR frame of the row's origin; never moved.
    """

    embedding: Tensor
    reference_point: Tensor
    timestamp: Tensor
    egopose: Tensor
    velo: Tensor


def empty(
    batch: int,
    num_rows: int,
    channels: int,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """Return an empty state of zeros; times are float64."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, num_rows, *shape, device=device, dtype=dtype)

    return Memory(zeros(channels), zeros(3), zeros(1).double(), zeros(4, 4), zeros(2))


def move(memory: Memory, transform: Tensor, delta_t: Tensor) -> Memory:
    """Move the rows by `transform` (B, 4, 4) and their times by `delta_t` (B,) in s.

    Times are added in the wider dtype: absolute times need float64.
    """
    rotation, translation = transform[:, :3, :3], transform[:, None, :3, 3]
    return memory._replace(
        reference_point=memory.reference_point @ rotation.transpose(1, 2) + translation,
        timestamp=memory.timestamp + delta_t.view(-1, 1, 1),
        egopose=transform.unsqueeze(1) @ memory.egopose,
    )


def pre_update(
    memory: Memory,
    transform: Tensor,
    delta_t: Tensor,
    prev_exists: Tensor,
    pseudo_reference_points: Tensor | None,
    memory_len: int,
) -> Memory:
    """Bring the state into the current LiDAR frame and cut it to `memory_len` rows.

    `transform` (B, 4, 4) is from the state's frame to the current LiDAR frame; `delta_t` (B,) s makes times
    ages. Where `prev_exists` (B,) is 0 a fresh memory starts: P rows with the pseudo points (P, 3) m in the
    current LiDAR frame (or None) and identity poses, and zeros. The attention never masks fresh rows: the
    weights were trained with them.
    """
    moved = move(Memory(*(rows[:, :memory_len] for rows in memory)), transform, delta_t)
    fresh = _fresh(moved, pseudo_reference_points)
    keep = prev_exists > 0
    pairs = zip(moved, fresh, strict=True)
    return Memory(*(torch.where(keep.view([-1] + [1] * (old.dim() - 1)), old, new) for old, new in pairs))


def push(memory: Memory, new: Memory) -> Memory:
    """Put `new` rows before `memory`'s, both in one frame; times keep `memory`'s dtype."""
    new = new._replace(timestamp=new.timestamp.to(memory.timestamp.dtype))
    return Memory(*(torch.cat(rows, dim=1) for rows in zip(new, memory, strict=True)))


def _fresh(like: Memory, pseudo_reference_points: Tensor | None) -> Memory:
    """Return the memory of a scene's start, broadcastable to `like`."""
    zero = Memory(*(torch.zeros_like(rows[:1]) for rows in like))
    if pseudo_reference_points is None:
        return zero
    num_pseudo = pseudo_reference_points.shape[0]
    points = pseudo_reference_points.to(zero.reference_point.dtype).unsqueeze(0)
    poses = torch.eye(4, dtype=zero.egopose.dtype, device=zero.egopose.device).repeat(1, num_pseudo, 1, 1)
    return zero._replace(
        reference_point=torch.cat([points, zero.reference_point[:, num_pseudo:]], dim=1),
        egopose=torch.cat([poses, zero.egopose[:, num_pseudo:]], dim=1),
    )


Queries = tuple[Tensor, Tensor, Tensor]
"""Content and position (B, n, C), and reference points (B, n, 3) relative to the range of the boxes."""
CONE_BIN = -30
"""The other depth bin in the cone, counted from the end."""
NERF_FREQUENCIES = (1, 2, 4, 8, 16, 32)


def token_centers(
    pad_shape: Sequence[int], stride: int, num_cameras: int, device: torch.device | str
) -> Tensor:
    """Return the centres (T, 2) of the feature cells, x and y in padded pixels."""
    pad_h, pad_w = int(pad_shape[0]), int(pad_shape[1])
    if pad_h % stride or pad_w % stride:
        raise ShapeError(f'image size {pad_h}x{pad_w} is not a multiple of the stride {stride}; pad them')
    # there and back: upstream keeps the centres as fractions, and its float32 rounding with them
    ys, xs = (
        (torch.arange(0, size, stride, dtype=torch.float32, device=device) + stride // 2) / size * size
        for size in (pad_h, pad_w)
    )
    grid = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), dim=-1)
    return grid.reshape(-1, 2).repeat(num_cameras, 1)


def focal_per_token(intrinsics: Tensor, tokens_per_camera: int) -> Tensor:
    """Return |fx|, |fy| in 1000 pixels per token, (B, T, 2), of `intrinsics` (B, N, 4, 4)."""
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1).abs() / 1e3
    return focal.repeat(1, tokens_per_camera, 1)


def nerf_encoding(values: Tensor) -> Tensor:
    """Encode (..., n) as (..., 12 n): for each of six frequencies the n sines, then the n cosines."""
    waves = [wave(values * frequency) for frequency in NERF_FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=-1)


def motion_code(velo: Tensor, age: Tensor, egopose: Tensor) -> Tensor:
    """Encode velocity (B, n, 2) m/s, age (B, n, 1) s and pose (B, n, 4, 4) of a row as (B, n, 180).

    The pose is from the row's LiDAR frame to the current one.
    """
    return nerf_encoding(torch.cat([velo, age, egopose[..., :3, :].flatten(-2)], dim=-1))


class FrameSteps:
    """The computation of a frame, on the layers of `StreamPETRHead`."""

    def token_centers(self, pad_shape: Sequence[int], num_cameras: int = 6) -> Tensor:
        return token_centers(pad_shape, self.stride, num_cameras, self.coords_d.device)

    def frustum(self, pad_shape: Sequence[int], num_cameras: int = 6) -> Tensor:
        """Return the image points (T, D, 4) of every token and depth."""
        points = frustum_points(self.token_centers(pad_shape, num_cameras), self.coords_d)
        tap('coords', points[None, ..., None])
        return points

    def focal_per_token(self, intrinsics: Tensor, tokens_per_camera: int) -> Tensor:
        """Return the focal lengths (B, T, 2) in 1000 pixels of the training's cameras."""
        return tap('intrinsic', focal_per_token(intrinsics, tokens_per_camera))

    def position_embedding(self, img2lidar: Tensor, focal: Tensor, frustum: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (B, T, C) of the tokens' rays before its gate, and the cone (B, T, 8).

        `img2lidar` is (B, N, 4, 4), (B, T, 4, 4) or (B, T, D, 4, 4), `focal` (B, T, 2), `frustum` (T, D, 4).
        The cone has two focal lengths, then x, y, z of the ray's points at the last depth and at `CONE_BIN`,
        shares of the position range.
        """
        low, high = self.position_range[:3], self.position_range[3:]
        points = (lidar_points(img2lidar, frustum) - low) / (high - low)
        cone = torch.cat([focal, points[:, :, -1], points[:, :, CONE_BIN]], dim=-1)
        return self.position_encoder(inverse_sigmoid(points.flatten(-2))), cone

    def embed_positions(
        self, lidar2img: Tensor, intrinsics: Tensor, pad_shape: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Run `position_embedding` on `lidar2img` (to padded pixels), `intrinsics` (B, N, 4, 4), size."""
        num_cameras = lidar2img.shape[1]
        frustum = self.frustum(pad_shape, num_cameras)
        tokens_per_camera = frustum.shape[0] // num_cameras
        # in float64: a float32 inverse of a real calibration alone moves boxes by up to 5 mm
        img2lidar = lidar2img.double().inverse().to(lidar2img.dtype)
        tap('img2lidar', img2lidar.repeat_interleave(tokens_per_camera, dim=1))
        return self.position_embedding(
            img2lidar, self.focal_per_token(intrinsics, tokens_per_camera), frustum
        )

    def align_tokens(self, img_feats: Tensor, pos_embed_raw: Tensor, cone: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, C) of features (B, N, C, h, w), aligned by their rays, and gated positions.

        Positions are (B, T, C); `cone` is (B, T, 8).
        """
        features = img_feats.permute(0, 1, 3, 4, 2).flatten(1, 3)
        tokens = self.spatial_alignment(self.memory_embed(features), cone)
        return tokens, self.featurized_pe(pos_embed_raw, tokens)

    def queries_at(self, reference_points: Tensor) -> Queries:
        """Return content and position (B, n, C) of queries at `reference_points` (B, n, 3)."""
        position = self.query_embedding(point_encoding(reference_points, self.embed_dims // 2))
        content = torch.zeros_like(position)
        still = torch.zeros_like(reference_points[..., :1])
        if self.with_ego_pos:
            pose = torch.eye(4, dtype=still.dtype, device=still.device).expand(*still.shape[:2], 4, 4)
            code = motion_code(torch.zeros_like(reference_points[..., :2]), still, pose)
            content = self.ego_pose_memory(content, code)
            position = self.ego_pose_pe(position, code)
        return content, position + self._encode_time(still), reference_points

    def learned_queries(self) -> Queries:
        """Return tgt, query_pos (1, n, C) and reference_points (1, n, 3), constant."""
        tgt, query_pos, points = self.queries_at(self.reference_points.weight.unsqueeze(0))
        return tap('tgt', tgt), tap('query_pos', query_pos), points

    def encode_memory(self, memory: Memory) -> Queries:
        """Return content, position (B, M, C) and normalised points (B, M, 3), not clamped."""
        points = (memory.reference_point - self.pc_range[:3]) / (self.pc_range[3:] - self.pc_range[:3])
        position = self.query_embedding(point_encoding(points, self.embed_dims // 2))
        content = memory.embedding
        # ages are small: float32 is exact enough for them, absolute times never come here
        age = memory.timestamp.to(points.dtype)
        if self.with_ego_pos:
            code = motion_code(memory.velo, age, memory.egopose)
            position = self.ego_pose_pe(position, code)
            content = self.ego_pose_memory(content, code)
        return content, position + self._encode_time(age), points

    def _encode_time(self, age: Tensor) -> Tensor:
        return self.time_embedding(sine_encoding(age, self.embed_dims))

    def decode(
        self,
        tokens: Tensor,
        tokens_pos: Tensor,
        memory: Memory,
        queries: Queries | None = None,
        all_layers: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the decoder on tokens (B, T, C), their positions, and M rows of memory.

        Returns:
            outs_dec (L, B, Q, C), all_cls_scores (L, B, Q, K) logits, all_bbox_preds (L, B, Q, 10): x, y, z
                of the centre in m, logarithms of three sizes, sine and cosine of the yaw, velocity x, y in
                m/s; the last layer alone without `all_layers`.
        """
        content, position, points = self.encode_memory(memory)
        count = self.num_propagated
        rows_of_memory = [(rows[:, :count], rows[:, count:]) for rows in (content, position, points)]
        propagated, (temp_memory, temp_pos, _) = zip(*rows_of_memory, strict=True)
        queries = [rows.expand(points.shape[0], -1, -1) for rows in queries or self.learned_queries()]
        tgt, query_pos, reference = (torch.cat(rows, dim=1) for rows in zip(queries, propagated, strict=True))
        outs_dec = self.run_transformer(tgt, query_pos, tokens, tokens_pos, temp_memory, temp_pos)
        first_layer = 0
        if not all_layers:
            first_layer = len(outs_dec) - 1
            outs_dec = outs_dec[-1:]
        if not torch.onnx.is_in_onnx_export():
            outs_dec = torch.nan_to_num(outs_dec)
        return outs_dec, *self.predict(outs_dec, reference, first_layer)

    def run_transformer(self, *args: Tensor) -> Tensor:
        """Return the outputs (L, B, Q, C) of the decoder."""
        return self.transformer(*args)

    def predict(
        self, outs_dec: Tensor, reference_points: Tensor, first_layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return logits (L, B, Q, K) and box codes (L, B, Q, 10) of outputs (L, B, Q, C).

        Every layer's centre is an offset, before a sigmoid, to the same `reference_points` (B, Q, 3).
        """
        codes = run_branches(self.reg_branches[first_layer:], outs_dec)
        low, high = self.pc_range[:3], self.pc_range[3:]
        centers = (codes[..., :3] + inverse_sigmoid(reference_points)).sigmoid() * (high - low) + low
        logits = run_branches(self.cls_branches[first_layer:], outs_dec)
        return logits, torch.cat([centers, codes[..., 3:]], dim=-1)

    def select_topk(self, cls_scores: Tensor, bbox_preds: Tensor, outs_dec: Tensor) -> Memory:
        """Return the memory rows of a frame, the best queries first, age 0, detached.

        Arguments are of the last layer: logits (B, Q, K), boxes (B, Q, 10), outputs (B, Q, C).
        """
        scores = cls_scores.sigmoid().amax(dim=-1)
        indexes = scores.topk(self.topk_proposals, dim=1).indices.unsqueeze(-1)

        def best(rows: Tensor) -> Tensor:
            return rows.gather(1, indexes.expand(-1, -1, rows.shape[-1])).detach()

        boxes = best(bbox_preds)
        timestamp = torch.zeros_like(boxes[..., :1])
        poses = torch.eye(4, dtype=boxes.dtype, device=boxes.device)
        poses = poses.expand(boxes.shape[0], self.topk_proposals, 4, 4)
        return Memory(best(outs_dec), boxes[..., :3], timestamp, poses, boxes[..., -2:])

    def pseudo_points(self) -> Tensor | None:
        """Return the points (num_propagated, 3) in m of a fresh memory, or None."""
        if not self.num_propagated:
            return None
        low, high = self.pc_range[:3], self.pc_range[3:]
        return self.pseudo_reference_points.weight * (high - low) + low

    def step(
        self,
        img_feats: Tensor,
        pos_embed_raw: Tensor,
        cone: Tensor,
        memory: Memory,
        transform: Tensor,
        delta_t: Tensor,
        prev_exists: Tensor,
        queries: Queries | None = None,
        all_layers: bool = True,
    ) -> tuple[dict[str, Tensor], Memory, Memory]:
        """Compute one frame: state in, boxes and state out.

        Features are (B, N, C, h, w), `pos_embed_raw` (B, T, C), `cone` (B, T, 8). `memory` is the state after
        the last frame, of memory_len + topk_proposals rows (or memory_len); `transform` (B, 4, 4) brings it
        into the current LiDAR frame, `delta_t` (B,) in s makes times ages; where `prev_exists` (B,) is 0 it
        is unused.
        """
        fresh = self.pseudo_points()
        used = pre_update(memory, transform, delta_t, prev_exists, fresh, self.memory_len)
        tap_memory('out_mem', used)
        tokens = self.align_tokens(img_feats, pos_embed_raw, cone)
        outs_dec, cls_scores, bbox_preds = self.decode(*tokens, used, queries, all_layers)
        new = self.select_topk(cls_scores[-1], bbox_preds[-1], outs_dec[-1])
        tap('out_outs_dec', outs_dec[-1])
        outputs = dict(outs_dec=outs_dec, all_cls_scores=cls_scores, all_bbox_preds=bbox_preds)
        return outputs, used, push(used, new)


def run_branches(branches: Sequence[nn.Module], outs_dec: Tensor) -> Tensor:
    """Run each layer's branch on its outputs (L, B, Q, C)."""
    if all(branch is branches[0] for branch in branches):
        return branches[0](outs_dec)
    return torch.stack([branch(outputs) for branch, outputs in zip(branches, outs_dec, strict=False)])


def tap_memory(prefix: str, memory: Memory) -> None:
    names = ('embedding', 'ref_point', 'timestamp', 'egopose', 'velo')
    for name, rows in zip(names, memory, strict=True):
        tap(f'{prefix}_{name}', rows)


# Users' detectors and heads: steps of a frame on their layers, memory, and tensors.
#
# Source: exiawsh/StreamPETR 95f6470 (names and meanings, no code).
# Glossary: B batch, N cameras, H, W network input in pixels, C channels, Q queries, T tokens, M rows of the
# memory that are no queries, L decoder layers.


HEAD_METHODS = (
    'forward', 'reset_memory', 'pre_update_memory', 'post_update_memory', 'position_embeding',
    'temporal_alignment', 'prepare_for_dn', 'get_bboxes',
)  # fmt: skip
"""Head methods that graphs and runtime compute by themselves."""
LAYERS = (
    'transformer', 'cls_branches', 'reg_branches', 'position_encoder', 'memory_embed', 'featurized_pe',
    'reference_points', 'query_embedding', 'spatial_alignment', 'time_embedding',
)  # fmt: skip
"""Layers that the graphs run of every head (two more with `with_ego_pos`)."""


class UserSteps(FrameSteps):
    """The steps of a frame on the layers of a user's head, with its attributes."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    def run_transformer(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
    ) -> Tensor:
        outs_dec, _ = self.head.transformer(tokens, tgt, query_pos, tokens_pos, None, temp_memory, temp_pos)
        return outs_dec


def is_ours(head: nn.Module) -> bool:
    return isinstance(head, FrameSteps)


def steps_of(head: nn.Module) -> FrameSteps:
    return head if is_ours(head) else UserSteps(head)


def check_parts(filename: str, model: nn.Module) -> None:
    """Raise ConfigError for a user's head without needed layers or methods."""
    head = model.pts_bbox_head
    if is_ours(head):
        return
    layers = [name for name in LAYERS if not hasattr(head, name)]
    methods = [name for name in HEAD_METHODS if not hasattr(head, name)]
    if head.with_ego_pos:
        layers += [name for name in ('ego_pose_pe', 'ego_pose_memory') if not hasattr(head, name)]
    if 'post_update_memory' not in methods:
        parameters = inspect.signature(head.post_update_memory).parameters
        methods += ['argument outs_dec of post_update_memory'] if 'outs_dec' not in parameters else []
    if layers or methods:
        raise ConfigError(
            f'{filename}: {type(head).__name__} of {sys.modules[type(head).__module__].__file__} has no '
            f'{", ".join([*layers, *methods])}; the export needs these names, as in the head of '
            'exiawsh/StreamPETR'
        )


def memory_of(head: nn.Module) -> Memory | None:
    """Return a head's memory in global coordinates, or None."""
    if is_ours(head):
        return head.memory
    rows = [getattr(head, f'memory_{field}') for field in Memory._fields]
    return None if rows[0] is None else Memory(*rows)


def set_memory(head: nn.Module, memory: Memory) -> None:
    if is_ours(head):
        head.memory = memory
        return
    for field, rows in memory._asdict().items():
        setattr(head, f'memory_{field}', rows)


@contextlib.contextmanager
def tapped(model: nn.Module) -> Iterator[None]:
    """Let a user's head tap its memory, inputs and outputs inside the block."""
    head = model.pts_bbox_head
    if is_ours(head):
        yield
        return
    pre_update, post_update = head.pre_update_memory, head.post_update_memory

    def pre_update_memory(*args: Any, **kwargs: Any) -> None:
        pre_update(*args, **kwargs)
        tap_memory('out_mem', memory_of(head))

    def post_update_memory(*args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(post_update).bind(*args, **kwargs).arguments
        tap('out_outs_dec', arguments['outs_dec'][-1])
        post_update(*args, **kwargs)
        tap_memory('post_mem', memory_of(head))

    def tap_inputs(head: nn.Module, args: tuple, kwargs: Mapping[str, Tensor]) -> None:
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, kwargs[name])

    def tap_outputs(head: nn.Module, args: tuple, outputs: Mapping[str, Tensor]) -> None:
        for name in ('all_cls_scores', 'all_bbox_preds'):
            tap(name, outputs[name])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(head, 'pre_update_memory', pre_update_memory))
        stack.enter_context(mock.patch.object(head, 'post_update_memory', post_update_memory))
        stack.callback(head.register_forward_pre_hook(tap_inputs, with_kwargs=True).remove)
        stack.callback(head.register_forward_hook(tap_outputs).remove)
        yield


def tap_geometry(model: nn.Module, lidar2img: Tensor, intrinsics: Tensor, images: Tensor) -> None:
    """Tap the tensors of images (N, 3, H, W) and a rig, (1, N, 4, 4), of a user's detector."""
    if is_ours(model.pts_bbox_head):
        return
    tap('img', images)
    steps_of(model.pts_bbox_head).embed_positions(lidar2img, intrinsics, images.shape[-2:])
