"""PETR and PETRv2 at test time: detector, decoder and heads, with the checkpoints' parameter names.

Source: megvii-research/PETR f7525f9, `detectors/petr3d.py`, `utils/petr_transformer.py`,
`dense_heads/petr_head.py`, `dense_heads/petrv2_head.py`.
Glossary: N cameras, C channels, h, w feature map, T = N h w tokens, D depth bins, R queries, L layers of the
decoder, K classes, n boxes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmcv.cnn.bricks.transformer import build_positional_encoding
from mmcv.runner.base_module import BaseModule
from mmdet.models import DETECTORS, HEADS
from mmdet.models.utils import build_transformer
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn

from mm2onnx_driving.layers.camera_detector import CameraDetector
from mm2onnx_driving.layers.query_decoder import AttentionLayer, DecoderTransformer
from mm2onnx_driving.petr.steps import (
    QUERY_FEATS,
    detect,
    embed_counts,
    embed_rays,
    image_to_lidar,
    padding_mask,
    query_positions,
    token_corners,
)
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import (
    QueryBoxCoder,
    box_branch,
    class_branch,
    decoded_samples,
)

# ---- detector


@registered_if_named(DETECTORS, beside=('PETRHead', 'PETRv2Head'))
class Petr3D(CameraDetector):
    """Camera-only detector.

    PETRv2 takes 12 pictures: 6 of a frame, then 6 of a frame before, with `lidar2img` from the present LiDAR
    frame to their pixels.
    """


# ---- decoder: queries attend to themselves, then to the tokens of all cameras


@registered_if_named(TRANSFORMER_LAYER)
class PETRTransformerDecoderLayer(AttentionLayer):
    """An `AttentionLayer` under PETR's name."""


@registered_if_named(TRANSFORMER)
class PETRTransformer(DecoderTransformer):
    """A decoder for `steps.run_decoder`; raises ConfigError for layers that begin with a norm."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if any(layer.pre_norm for layer in self.decoder.layers):
            raise ConfigError('PETRTransformer: operation_order begins with a norm; expected self_attn first')


# ---- heads: feature maps and calibrations to objects

CODE_SIZE = 10
CAMERAS = 6
TASK_SIZES = (2, 1, 3, 2, 2)
"""Outputs of the five box branches of PETRv2; upstream's names do not fit them."""


def two_convolutions(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))


class PositionGate(nn.Module):
    """A gate on positions, computed from each token's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        """Return positions times a sigmoid of the features; all are (N, C, h, w)."""
        return positions * self.conv_expand(self.conv_reduce(features).relu()).sigmoid()


class BoxBranches(nn.Module):
    """Box numbers of PETRv2: common layers, then a branch for each of `TASK_SIZES`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for _ in range(2):
            steps += [nn.Linear(channels, channels), nn.ReLU(), nn.Dropout(0.0)]
        self.reg_branch = nn.Sequential(*steps)
        self.task_heads = nn.ModuleList(box_branch(channels, 1, size) for size in TASK_SIZES)

    def forward(self, queries: Tensor) -> Tensor:
        """Return the numbers (..., 10) of queries (..., C)."""
        features = self.reg_branch(queries)
        return torch.cat([branch(features) for branch in self.task_heads], dim=-1)


class PetrBoxCoder(QueryBoxCoder):
    """A `QueryBoxCoder` that never lowers its threshold."""

    def passing(self, scores: Tensor) -> Tensor:
        return scores > self.score_threshold if self.score_threshold else super().passing(scores)


@registered_if_named(HEADS)
class PETRHead(BaseModule):
    """Test-time head of PETR, for one frame of N cameras.

    Args:
        num_classes, in_channels, num_query: K, channels of the neck's maps, R.
        embed_dims: C.
        transformer, positional_encoding, bbox_coder: configs.
        depth_num, depth_start: D, and the first depth, m.
        LID: whether the steps of the depths grow.
        position_range: x, y, z low, then high, m, of the points along the rays; the last depth is near the
            fourth number.
        with_multiview, normedlinear, with_position: must be True, False and True (ConfigError).
        num_reg_fcs: hidden layers of the branches of classes and, in PETR, of boxes.
        code_weights: loss weights, in checkpoints; None: ones.
        training: unused.
    """

    _version = 2

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_query: int = 100,
        embed_dims: int = 256,
        transformer: dict | None = None,
        positional_encoding: dict | None = None,
        bbox_coder: dict | None = None,
        depth_num: int = 64,
        depth_start: float = 1.0,
        LID: bool = False,
        position_range: Sequence[float] = (-65, -65, -8.0, 65, 65, 8.0),
        with_multiview: bool = False,
        num_reg_fcs: int = 2,
        code_weights: Sequence[float] | None = None,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not with_multiview or training.get('normedlinear') or training.get('with_position') is False:
            raise ConfigError(
                f'{type(self).__name__}: with_multiview and with_position must be True and normedlinear '
                'False, as in the published configs'
            )
        self.num_classes, self.num_query, self.embed_dims = num_classes, num_query, embed_dims
        options = {key: value for key, value in bbox_coder.items() if key != 'type'}
        self.bbox_coder = PetrBoxCoder(**options)
        self.pc_range, self.position_range = list(self.bbox_coder.pc_range), list(position_range)
        self.depth_num, self.depth_start, self.LID = depth_num, depth_start, LID
        self.code_weights = nn.Parameter(
            torch.tensor(list(code_weights or [1.0] * CODE_SIZE)[:CODE_SIZE]), requires_grad=False
        )
        self.input_proj = nn.Conv2d(in_channels, embed_dims, 1)
        self.transformer = build_transformer(transformer)
        self.positional_encoding = build_positional_encoding(positional_encoding)
        self._build_branches(len(self.transformer.decoder.layers), num_reg_fcs)
        self.adapt_pos3d = two_convolutions(
            3 * self.positional_encoding.num_feats, 4 * embed_dims, embed_dims
        )
        self.position_encoder = two_convolutions(3 * depth_num, 4 * embed_dims, embed_dims)
        self.reference_points = nn.Embedding(num_query, 3)
        self.query_embedding = nn.Sequential(
            nn.Linear(3 * QUERY_FEATS, embed_dims), nn.ReLU(), nn.Linear(embed_dims, embed_dims)
        )

    def _build_branches(self, layers: int, depth: int) -> None:
        # one module in every place: the layers share their branches, the checkpoints repeat them
        classes = class_branch(self.embed_dims, depth, self.num_classes)
        self.cls_branches = nn.ModuleList([classes] * layers)
        self.reg_branches = nn.ModuleList([box_branch(self.embed_dims, depth, CODE_SIZE)] * layers)

    def forward(self, maps: Sequence[Tensor], img_metas: list[dict]) -> dict[str, Tensor]:
        """Return the head's outputs for one frame.

        Args:
            maps: of each level (1, N, in_channels, h, w); the first is used.
            img_metas: one dict: `lidar2img` [N] of (4, 4), present LiDAR frame to pixels of the padded
                pictures times depth; `pad_shape` and `img_shape` [N] of (H, W, 3), with and without padding;
                for PETRv2 `timestamp` [N].

        Returns:
            'all_cls_scores' (L, 1, R, K) logits, 'all_bbox_preds' (L, 1, R, 10): x, y in m, log width, log
                length, z of the centre in m, log height, sine and cosine of the yaw, velocity x, y in m/s.
        """
        (meta,) = img_metas
        size = tuple(maps[0].shape[-2:])
        padding = padding_mask(meta['img_shape'], meta['pad_shape'][0], size).to(maps[0].device)
        img2lidar = image_to_lidar(meta['lidar2img']).to(maps[0].device)
        logits, boxes = detect(
            self,
            maps[0][0],
            embed_rays(self, img2lidar, token_corners(meta['pad_shape'][0], size), size),
            embed_counts(self, padding),
            query_positions(self),
            padding if padding.any() else None,
            self.seconds(meta),
        )
        return dict(all_cls_scores=logits, all_bbox_preds=boxes)

    def seconds(self, meta: dict) -> float:
        return 1.0

    def get_bboxes(self, outputs: dict[str, Tensor], img_metas: list[dict]) -> list[list[Any]]:
        """Return [boxes, scores (n,), labels (n,)] of each sample, best first, by the last layer."""
        return decoded_samples(self.bbox_coder, outputs, img_metas)


@registered_if_named(HEADS)
class PETRv2Head(PETRHead):
    """Test-time head of PETRv2: 6 cameras of the frame, then 6 of a frame before (`PETRHead`).

    Args:
        with_fpe, with_time, with_multi: must be True (ConfigError): gate, division by the time, branches of
            boxes.
    """

    def __init__(
        self,
        *args: Any,
        with_fpe: bool = False,
        with_time: bool = False,
        with_multi: bool = False,
        **options: Any,
    ) -> None:
        if not (with_fpe and with_time and with_multi):
            raise ConfigError(
                f'PETRv2Head: with_fpe={with_fpe}, with_time={with_time}, with_multi={with_multi}; expected '
                'True for all three, as in the published configs'
            )
        super().__init__(*args, **options)
        self.fpe = PositionGate(self.embed_dims)

    def _build_branches(self, layers: int, depth: int) -> None:
        self.cls_branches = nn.ModuleList(
            class_branch(self.embed_dims, depth, self.num_classes) for _ in range(layers)
        )
        self.reg_branches = nn.ModuleList(BoxBranches(self.embed_dims) for _ in range(layers))

    def seconds(self, meta: dict) -> float:
        ages = np.asarray(meta['timestamp'], np.float32).reshape(-1, CAMERAS)
        seconds = float((ages[1] - ages[0]).mean())
        if not seconds:
            raise DataError(
                'timestamp: both frames have the same times, so a displacement gives no velocity; '
                'give the ages of the previous frame in entries 6 to 11'
            )
        return seconds
