"""StreamPETR's head for eager runs, with its state, the coder, and the 2D auxiliary head, for training alone.

Layers: `head_layers.py`, frame: `steps.py`. The coder differs from upstream: ranges are unchanged, and a
request for too many boxes gives all of them.

Source: exiawsh/StreamPETR 95f6470, models/dense_heads/{streampetr_head,focal_head}.py (the latter after
Focal-PETR, Wang et al., 2022), core/bbox/coders/nms_free_coder.py and core/bbox/util.py.
Glossary: B batch, N cameras, C channels, h, w feature map, L decoder layers, Q queries, K classes, n boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import Linear, bias_init_with_prob, xavier_init
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmcv.runner import BaseModule
from mmdet.core import build_bbox_coder
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models import DETECTORS, HEADS
from mmdet.models.utils import NormedLinear, build_transformer
from mmdet.models.utils.builder import TRANSFORMER
from mmdet3d.core import bbox3d2result
from torch import Tensor, nn

from mm2onnx_driving.layers.camera_detector import CameraDetector
from mm2onnx_driving.layers.query_decoder import AttentionLayer, DecoderTransformer, depth_bins
from mm2onnx_driving.streampetr import steps as temporal
from mm2onnx_driving.streampetr.steps import CONE_BIN, FrameSteps, Memory, tap_memory
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder

# StreamPETR's detector at test time: pictures to features, frames to scenes.
#
# Source: exiawsh/StreamPETR 95f6470, models/detectors/petr3d.py.
#
# Glossary: N cameras, H, W pictures in px, C channels, h, w feature map.


@registered_if_named(DETECTORS)
class Petr3D(CameraDetector):
    """Camera-only detector that runs a scene frame by frame."""

    def __init__(
        self,
        num_frame_head_grads: int = 2,
        num_frame_backbone_grads: int = 2,
        num_frame_losses: int = 2,
        stride: int = 16,
        position_level: int = 0,
        aux_2d_only: bool = True,
        single_test: bool = False,
        **modules: Any,
    ) -> None:
        super().__init__(**modules)
        name = type(self).__name__
        if not aux_2d_only:
            raise ConfigError(f'{name}: aux_2d_only=False (focal token sampling) is not supported')
        if not hasattr(self.pts_bbox_head, 'stride'):
            # PETR and PETRv2 have a detector of the same type, see `Offer.beside`
            raise ConfigError(
                f'{name}: pts_bbox_head is {type(self.pts_bbox_head).__name__}, expected a head of '
                'StreamPETR; import the plugin of the repository that the config comes from'
            )
        if stride != self.pts_bbox_head.stride:
            raise ConfigError(
                f"{name}: stride is {stride}, the head's is {self.pts_bbox_head.stride}; set both to "
                'the same value'
            )
        self.position_level = position_level
        self.prev_scene_token: str | None = None

    def extract_img_feat(self, img: Tensor) -> Tensor:
        return super().extract_img_feat(img)[self.position_level]

    def forward_test(self, img_metas: list, rescale: bool = False, **data: Any) -> list[dict]:
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError(
                'Petr3D supports one augmentation at test time: img_metas must be a list of one list'
            )
        img = data.pop('img')[0]
        single = {key: values[0][0].unsqueeze(0) for key, values in data.items()}
        return self.simple_test(img_metas[0], img=img, **single)

    def simple_test(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> list[dict]:
        """Return a list of one dict, `pts_bbox` -> a dict on the CPU, of pictures (N or 1, N, 3, H, W)."""
        img = img.unsqueeze(0) if img.dim() == 4 else img
        if img.shape[0] != 1:
            raise DataError(
                'Petr3D supports one sample at a time, since scenes are streams; got a batch of '
                f'{img.shape[0]}'
            )
        outputs = self.run_frame(img_metas, tap('img', img), **data)
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas)
        return [{'pts_bbox': bbox3d2result(*boxes_scores_labels)} for boxes_scores_labels in samples]

    def run_frame(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> dict[str, Tensor]:
        scene_token = img_metas[0]['scene_token']
        is_new = scene_token != self.prev_scene_token
        if is_new:
            self.prev_scene_token = scene_token
            self.pts_bbox_head.reset_memory()
        data['prev_exists'] = img.new_full((1,), float(not is_new))
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, data[name])
        return self.pts_bbox_head(self.extract_img_feat(img), img_metas, **data)


@registered_if_named(DETECTORS)
class Petr3DPTH(Petr3D):
    """The name that the deployment fork's `_pth` configs use."""


@registered_if_named(DETECTORS)
class Petr3DONNX(Petr3D):
    """The name that the deployment fork's `_onnx` configs use."""


# The temporal decoder and the layers of StreamPETR's head, with the checkpoints' names.
#
# Source: exiawsh/StreamPETR 95f6470, models/utils/petr_transformer.py,
# models/dense_heads/streampetr_head.py,
# models/utils/misc.py (`MLN`, `SELayer_Linear`).
# Glossary: B batch, C channels, Q queries (new and propagated), T tokens, M memory rows that are no queries,
# L
# outputs, one per decoder layer, or 1 without `return_intermediate`, n any of Q, T, M.


# ---- temporal decoder: queries attend to themselves and to the memory, then to the image tokens.
# Tensors inside are sequence first, (n, B, C), as in mmcv's attention.


@registered_if_named(TRANSFORMER_LAYER)
class PETRTemporalDecoderLayer(AttentionLayer):
    """An `AttentionLayer` with memory in its self attention; raises ConfigError for `batch_first=True`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.batch_first:
            raise ConfigError(
                'PETRTemporalDecoderLayer: batch_first=True is not supported; the decoder is sequence first'
            )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the queries (Q, B, C) after the layer.

        Tokens (T, B, C) are keys and values of the cross attention; memory rows (M, B, C), maybe none, stand
        behind the queries in the self attention. `attn_mask` (Q, Q + M) is True where a query must not look.
        """
        identity = query
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        for operation in self.operation_order:
            # the shortcut starts at the input of the norm only where the norm comes first
            shortcut = identity if self.pre_norm else None
            if operation == 'norm':
                query = next(norms)(query)
                continue
            if operation == 'self_attn':
                keys, keys_pos = torch.cat([query, temp_memory]), torch.cat([query_pos, temp_pos])
                query = next(attentions)(
                    query, keys, keys, shortcut, query_pos=query_pos, key_pos=keys_pos, attn_mask=attn_mask
                )
            elif operation == 'cross_attn':
                query = next(attentions)(
                    query, tokens, tokens, shortcut, query_pos=query_pos, key_pos=tokens_pos
                )
            else:
                query = next(ffns)(query, shortcut)
                continue
            identity = query
        return query


@registered_if_named(TRANSFORMER)
class PETRTemporalTransformer(DecoderTransformer):
    """A `DecoderTransformer` for batch-first tensors."""

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(getattr(module, 'weight', None), Tensor) and module.weight.dim() > 1:
                xavier_init(module, distribution='uniform')
        self._is_init = True

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
    ) -> Tensor:
        """Return the outputs (L, B, Q, C) of the layers for (B, n, C) inputs."""
        sequences = (tgt, query_pos, tokens, tokens_pos, temp_memory, temp_pos)
        return self.decoder(*(sequence.transpose(0, 1) for sequence in sequences)).transpose(1, 2)


# ---- layers of the head

CODE_SIZE = 10
CONE_SIZE = 8
"""Numbers of the cone code (`FrameSteps.position_embedding`)."""
MOTION_SIZE = 180
"""Numbers of a `motion_code`."""
NUM_BRANCHES = 6
"""Entries of `cls_branches` and `reg_branches`: most decoder layers."""
IGNORED_KEYS = {
    'with_position', 'depth_step', 'code_size', 'test_cfg', 'train_cfg', 'with_dn', 'scalar', 'noise_scale',
    'noise_trans', 'dn_weight', 'split', 'match_with_velo', 'sync_cls_avg_factor', 'loss_bbox', 'loss_iou',
}  # fmt: skip
LEGACY_NAMES = {
    '.self_attn.': '.attentions.0.',
    '.multihead_attn.': '.attentions.1.',
    '.decoder.norm.': '.decoder.post_norm.',
}
"""Part of a parameter's name in older files -> its name here."""


class MLN(nn.Module):
    """Motion-aware layer normalisation: a code scales and shifts features, at first by 1 and 0."""

    def __init__(self, code_dims: int, embed_dims: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(code_dims, embed_dims), nn.ReLU())
        self.gamma = nn.Linear(embed_dims, embed_dims)
        self.beta = nn.Linear(embed_dims, embed_dims)
        self.ln = nn.LayerNorm(embed_dims, elementwise_affine=False)
        for linear, bias in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Normalise `features` (..., C) and modulate them by `code` (..., code_dims)."""
        hidden = self.reduce(code)
        return self.gamma(hidden) * self.ln(features) + self.beta(hidden)


class SELayer(nn.Module):
    """A gate on features, computed from other features."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Linear(embed_dims, embed_dims)
        self.conv_expand = nn.Linear(embed_dims, embed_dims)

    def forward(self, features: Tensor, gating: Tensor) -> Tensor:
        """Multiply `features` (..., C) by a sigmoid gate of `gating` (..., C)."""
        return features * self.conv_expand(self.conv_reduce(gating).relu()).sigmoid()


class HeadLayers(BaseModule):
    """The layers of a `StreamPETRHead`; `transformer`, `bbox_coder` and `loss_cls` are configs."""

    _version = 2

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        stride: int = 16,
        embed_dims: int = 256,
        num_query: int = 100,
        num_reg_fcs: int = 2,
        memory_len: int = 1024,
        topk_proposals: int = 256,
        num_propagated: int = 256,
        with_ego_pos: bool = True,
        match_costs: Sequence[float] | None = None,
        transformer: dict | None = None,
        code_weights: Sequence[float] | None = None,
        bbox_coder: dict | None = None,
        loss_cls: dict | None = None,
        depth_num: int = 64,
        LID: bool = False,
        depth_start: float = 1,
        position_range: Sequence[float] = (-65, -65, -8.0, 65, 65, 8.0),
        normedlinear: bool = False,
        init_cfg: dict | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.in_channels, self.embed_dims = num_classes, in_channels, embed_dims
        self.stride, self.num_query, self.num_reg_fcs = stride, num_query, num_reg_fcs
        self.memory_len, self.topk_proposals, self.num_propagated = memory_len, topk_proposals, num_propagated
        self.with_ego_pos, self.depth_num, self.normedlinear = with_ego_pos, depth_num, normedlinear
        self.cls_out_channels, self.code_size = num_classes, CODE_SIZE
        self._check(ignored, loss_cls or {})
        self.bbox_coder = build_bbox_coder(bbox_coder)
        weights = list(code_weights or [1.0] * 8 + [0.2] * 2)[:CODE_SIZE]
        self.code_weights = _constant(weights)
        self.match_costs = _constant(match_costs or weights)
        self.pc_range = _constant(self.bbox_coder.pc_range)
        self.position_range = _constant(position_range)
        self.coords_d = nn.Parameter(
            depth_bins(depth_num, depth_start, self.position_range[3], LID), requires_grad=False
        )
        self._build_layers()
        self.transformer = build_transformer(transformer)
        self._check_layers()

    def _check(self, ignored: dict[str, Any], loss_cls: dict) -> None:
        unknown = sorted(set(ignored) - IGNORED_KEYS)
        num_all = self.num_query + self.num_propagated
        code_size = ignored.get('code_size', CODE_SIZE)
        wrong = {
            'loss_cls.use_sigmoid must be True: scores are sigmoids': not loss_cls.get('use_sigmoid'),
            f'unknown keys {", ".join(unknown)}': bool(unknown),
            f'code_size={code_size}: boxes have 10 numbers, velocity included': code_size != CODE_SIZE,
            f'in_channels={self.in_channels} must equal embed_dims={self.embed_dims}': (
                self.in_channels != self.embed_dims
            ),
            f'embed_dims={self.embed_dims} must be a multiple of 4': bool(self.embed_dims % 4),
            f'depth_num={self.depth_num}: expected at least 30, since the cone uses the point 30 bins '
            'from the end': (self.depth_num < -CONE_BIN),
            f'num_propagated={self.num_propagated} exceeds memory_len={self.memory_len}': (
                self.num_propagated > self.memory_len
            ),
            f'topk_proposals={self.topk_proposals} exceeds the {num_all} queries': (
                self.topk_proposals > num_all
            ),
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(f'{type(self).__name__}: {message}')

    def _check_layers(self) -> None:
        decoder = self.transformer.decoder
        if decoder.embed_dims != self.embed_dims:
            raise ConfigError(
                f'{type(self).__name__}: embed_dims={self.embed_dims}, the decoder has {decoder.embed_dims}'
            )
        if decoder.num_layers > NUM_BRANCHES:
            raise ConfigError(
                f'{type(self).__name__}: num_layers={decoder.num_layers}; there are {NUM_BRANCHES} branches'
            )

    def _build_layers(self) -> None:
        dims = self.embed_dims
        classifier = NormedLinear if self.normedlinear else Linear
        cls_branch, reg_branch = [], []
        for _ in range(self.num_reg_fcs):
            cls_branch += [Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU(inplace=True)]
            reg_branch += [Linear(dims, dims), nn.ReLU()]
        cls_branch = nn.Sequential(*cls_branch, classifier(dims, self.num_classes))
        reg_branch = nn.Sequential(*reg_branch, Linear(dims, CODE_SIZE))
        # one module in every place: the layers share their branches, the checkpoints repeat them
        self.cls_branches = nn.ModuleList([cls_branch] * NUM_BRANCHES)
        self.reg_branches = nn.ModuleList([reg_branch] * NUM_BRANCHES)

        self.position_encoder = _two_linear(self.depth_num * 3, dims * 4, dims)
        self.memory_embed = _two_linear(dims, dims, dims)
        self.featurized_pe = SELayer(dims)
        self.reference_points = nn.Embedding(self.num_query, 3)
        if self.num_propagated:
            self.pseudo_reference_points = nn.Embedding(self.num_propagated, 3)
            self.pseudo_reference_points.weight.requires_grad = False
        self.query_embedding = _two_linear(dims * 3 // 2, dims, dims)
        self.spatial_alignment = MLN(CONE_SIZE, dims)
        self.time_embedding = nn.Sequential(nn.Linear(dims, dims), nn.LayerNorm(dims))
        if self.with_ego_pos:
            self.ego_pose_pe = MLN(MOTION_SIZE, dims)
            self.ego_pose_memory = MLN(MOTION_SIZE, dims)

    def init_weights(self) -> None:
        nn.init.uniform_(self.reference_points.weight, 0, 1)
        if self.num_propagated:
            nn.init.uniform_(self.pseudo_reference_points.weight, 0, 1)
        self.transformer.init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        if (local_metadata.get('version') or 0) < 2:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                renamed = key
                for old, new in LEGACY_NAMES.items():
                    renamed = renamed.replace(old, new)
                if renamed != key:
                    state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _constant(values: Sequence[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(list(values), dtype=torch.float32), requires_grad=False)


def _two_linear(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


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
