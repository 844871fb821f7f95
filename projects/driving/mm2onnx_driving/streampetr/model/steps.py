"""The steps of a frame of StreamPETR's head and the rays of its tokens: pure functions.

Source: exiawsh/StreamPETR 95f6470, models/dense_heads/streampetr_head.py, models/utils/positional_encoding.py
(`pos2posemb1d`, `pos2posemb3d`, `nerf_positional_encoding`), models/utils/misc.py (`locations`).
Glossary: B batch, N cameras, T tokens, D depths, C channels, Q queries, M, n rows of the memory, L decoder
layers, K classes.
"""

from collections.abc import Sequence

import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mm2onnx_driving.layers.rays import frustum_points, lidar_points, point_encoding, sine_encoding
from mm2onnx_driving.streampetr.model import memory as temporal
from mm2onnx_driving.streampetr.model.memory import Memory
from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.base.taps import tap

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
        used = temporal.pre_update(memory, transform, delta_t, prev_exists, fresh, self.memory_len)
        tap_memory('out_mem', used)
        tokens = self.align_tokens(img_feats, pos_embed_raw, cone)
        outs_dec, cls_scores, bbox_preds = self.decode(*tokens, used, queries, all_layers)
        new = self.select_topk(cls_scores[-1], bbox_preds[-1], outs_dec[-1])
        tap('out_outs_dec', outs_dec[-1])
        outputs = dict(outs_dec=outs_dec, all_cls_scores=cls_scores, all_bbox_preds=bbox_preds)
        return outputs, used, temporal.push(used, new)


def run_branches(branches: Sequence[nn.Module], outs_dec: Tensor) -> Tensor:
    """Run each layer's branch on its outputs (L, B, Q, C)."""
    if all(branch is branches[0] for branch in branches):
        return branches[0](outs_dec)
    return torch.stack([branch(outputs) for branch, outputs in zip(branches, outs_dec, strict=False)])


def tap_memory(prefix: str, memory: Memory) -> None:
    names = ('embedding', 'ref_point', 'timestamp', 'egopose', 'velo')
    for name, rows in zip(names, memory, strict=True):
        tap(f'{prefix}_{name}', rows)
