"""StreamPETR's head for eager runs, with its state, the coder, and the 2D auxiliary head, for training alone.

Layers: `head_layers.py`, frame: `steps.py`. The coder differs from upstream: ranges are unchanged, and a
request for too many boxes gives all of them.

Source: exiawsh/StreamPETR 95f6470, models/dense_heads/{streampetr_head,focal_head}.py (the latter after
Focal-PETR, Wang et al., 2022), core/bbox/coders/nms_free_coder.py and core/bbox/util.py.
Glossary: B batch, N cameras, C channels, h, w feature map, L decoder layers, Q queries, K classes, n boxes.
"""

from typing import Any

import torch
from mmcv.runner import BaseModule
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models import HEADS
from torch import Tensor, nn

from mm2onnx_driving.streampetr.model import memory as temporal
from mm2onnx_driving.streampetr.model.head_layers import HeadLayers
from mm2onnx_driving.streampetr.model.memory import Memory
from mm2onnx_driving.streampetr.model.steps import FrameSteps, tap_memory
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder

# ---- coder: logits and box codes to boxes, without NMS


def denormalize_bbox(normalized: Tensor, pc_range: list[float] | Tensor | None = None) -> Tensor:
    """Return the boxes (..., 9 or 7) of predictions (..., 10 or 8).

    Boxes are the centre x, y, z and three sizes, metres, yaw, radians, and velocity, m/s; predictions x, y,
    z, log sizes in the same order, sin yaw, cos yaw, velocity.
    """
    yaw = torch.atan2(normalized[..., 6:7], normalized[..., 7:8])
    return torch.cat([normalized[..., :3], normalized[..., 3:6].exp(), yaw, normalized[..., 8:10]], dim=-1)


@registered_if_named(BBOX_CODERS)
class NMSFreeCoder(QueryBoxCoder, BaseBBoxCoder):
    """The best (query, class) pairs as boxes, see `QueryBoxCoder`; codes as in `denormalize_bbox`."""

    def passing(self, scores: Tensor) -> Tensor:
        return scores >= (self.score_threshold or 0.0)

    def boxes_of(self, codes: Tensor) -> Tensor:
        return denormalize_bbox(codes)

    def encode(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError('NMSFreeCoder only decodes')

    def decode(self, preds_dicts: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the `decode_single` of every sample, of the last decoder layer.

        `preds_dicts` has 'all_cls_scores' (L, B, Q, K), logits, and 'all_bbox_preds' (L, B, Q, 10).
        """
        last = zip(preds_dicts['all_cls_scores'][-1], preds_dicts['all_bbox_preds'][-1], strict=True)
        return [self.decode_single(cls_scores, bbox_preds) for cls_scores, bbox_preds in last]


# ---- 2D auxiliary head


@registered_if_named(HEADS)
class FocalHead(BaseModule):
    """2D boxes, centres and classes per token; `in_channels` is a multiple of 32."""

    def __init__(
        self, num_classes: int, in_channels: int = 256, init_cfg: dict | None = None, **training: Any
    ) -> None:
        super().__init__(init_cfg)
        self.cls = nn.Conv2d(in_channels, num_classes, 1)
        self.shared_reg = tower(in_channels)
        self.shared_cls = tower(in_channels)
        self.centerness = nn.Conv2d(in_channels, 1, 1)
        self.ltrb = nn.Conv2d(in_channels, 4, 1)
        self.center2d = nn.Conv2d(in_channels, 2, 1)


def tower(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(32, channels), nn.ReLU())


# ---- head


@registered_if_named(HEADS)
class StreamPETRHead(FrameSteps, HeadLayers):
    """Queries, some of them from the last frame, become boxes; the best become memory.

    Args:
        num_classes, in_channels, embed_dims, num_query: sizes; `in_channels` must be `embed_dims`.
        stride: pixels per feature cell.
        memory_len: rows of memory that a frame uses.
        topk_proposals: rows that a frame adds.
        num_propagated: rows that become queries; other rows are keys of the self attention.
        num_reg_fcs: hidden layers of the two branches.
        with_ego_pos: condition queries and memory on ego motion.
        LID, depth_num, depth_start: whether depth steps grow, number of depths, first depth, m;
            `position_range[3]` would be the next depth.
        position_range: x, y, z low, then high, m: normalises the points.
        normedlinear: cosine classifier.
        ignored: unused keys, and `code_size`, which must be 10.
    """

    memory: Memory | None = None
    """State after the last frame in global coordinates, with negative absolute times, or None."""

    def reset_memory(self) -> None:
        self.memory = None

    def forward(
        self, img_feats: Tensor, img_metas: list[dict], topk_indexes: None = None, **data: Tensor
    ) -> dict[str, Any]:
        """Run one frame (B, N, C, h, w) and keep the state; raises ConfigError if `topk_indexes` is not None.

        Metas have 'pad_shape'; data are lidar2img (to padded pixels times depth), intrinsics (B, N, 4, 4),
        ego_pose, ego_pose_inv (B, 4, 4; LiDAR to global and back), timestamp (B,) float64 s, prev_exists (B,)
        float32. Returned are all_cls_scores (L, B, Q, K) logits and all_bbox_preds (L, B, Q, 10): x, y, z of
        the centre (m), logarithms of three sizes, sine and cosine of the yaw, velocity x, y (m/s).
        """
        if topk_indexes is not None:
            raise ConfigError(
                'focal token sampling (aux_2d_only=False) is not supported; leave topk_indexes None'
            )
        places = self.embed_positions(data['lidar2img'], data['intrinsics'], img_metas[0]['pad_shape'][0])
        outputs, _, pushed = self.step(img_feats, *places, *self._state(data), data['prev_exists'])
        self.memory = temporal.move(pushed, data['ego_pose'], -data['timestamp'])
        tap_memory('post_mem', self.memory)
        return {name: tap(name, outputs[name]) for name in ('all_cls_scores', 'all_bbox_preds')}

    def _state(self, data: dict[str, Tensor]) -> tuple[Memory, Tensor, Tensor]:
        if self.memory is not None:
            return self.memory, data['ego_pose_inv'], data['timestamp']
        poses = data['ego_pose_inv']
        fresh = temporal.empty(poses.shape[0], self.memory_len, self.embed_dims, poses.device, poses.dtype)
        identity = torch.eye(4, dtype=poses.dtype, device=poses.device).expand_as(poses)
        return fresh, identity, torch.zeros_like(data['timestamp'])

    def get_bboxes(
        self, preds_dicts: dict[str, Tensor], img_metas: list[dict], rescale: bool = False
    ) -> list[list]:
        """Return per sample boxes (n, 9) of `img_metas`' box type, scores (n,), labels (n,), best first."""
        results = []
        for decoded, meta in zip(self.bbox_coder.decode(preds_dicts), img_metas, strict=True):
            bboxes = decoded['bboxes'].clone()
            # mmdet3d's boxes stand on the centre of their bottom
            bboxes[:, 2] -= bboxes[:, 5] * 0.5
            boxes = meta['box_type_3d'](bboxes, bboxes.shape[-1])
            results.append([boxes, decoded['scores'], decoded['labels']])
        return results


@registered_if_named(HEADS)
class StreamPETRHeadPTH(StreamPETRHead):
    """The name that the deployment fork's `_pth` configs use."""


@registered_if_named(HEADS)
class StreamPETRHeadONNX(StreamPETRHead):
    """The name that the deployment fork's `_onnx` configs use."""
