"""StreamPETR's head: its layers, and eager runs with the state kept in it; `steps.py` has the frame.

Source: exiawsh/StreamPETR 95f6470, models/dense_heads/streampetr_head.py; parameter names are the
checkpoints'.

Shapes: B batch, N cameras, C channels, h w feature map, T = N h w tokens, D depth bins, Q queries (learned
and propagated), L decoder layers, K classes, M memory rows inside a frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mmcv.cnn import Linear, bias_init_with_prob
from mmdet.core import build_assigner, build_bbox_coder, build_sampler
from mmdet.models import HEADS, build_loss
from mmdet.models.utils import NormedLinear, build_transformer
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.taps import tap
from projects.mmdet3d_plugin.streampetr import memory as temporal
from projects.mmdet3d_plugin.streampetr import rays
from projects.mmdet3d_plugin.streampetr.layers import MLN, SELayer
from projects.mmdet3d_plugin.streampetr.memory import Memory
from projects.mmdet3d_plugin.streampetr.steps import CONE_BIN, FrameSteps, Queries, tap_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

CODE_SIZE = 10
CONE_SIZE = 8
NUM_BRANCHES = 6
IGNORED_KEYS = {'with_position', 'depth_step', 'code_size'}
LEGACY_NAMES = {
    '.self_attn.': '.attentions.0.',
    '.multihead_attn.': '.attentions.1.',
    '.decoder.norm.': '.decoder.post_norm.',
}


@HEADS.register_module()
class StreamPETRHead(FrameSteps):
    """Queries, some of them propagated from the last frame, become boxes; the best of them become memory.

    Args:
        num_classes, in_channels, embed_dims, num_query: sizes; `in_channels` must be `embed_dims`.
        stride: px per feature cell.
        memory_len: rows of memory that a frame uses.
        topk_proposals: rows that a frame adds.
        num_propagated: rows that become queries; the other rows are keys of the self attention.
        num_reg_fcs: hidden layers of the two branches.
        with_ego_pos: condition queries and memory on ego motion.
        LID, depth_num, depth_start, position_range: the depth bins and the range that normalises their
            points, in m.
        normedlinear: cosine classifier.
        with_dn, scalar, noise_scale, noise_trans, dn_weight, split: denoising queries in training.
        match_with_velo, match_costs, code_weights, loss_cls, loss_bbox, loss_iou, sync_cls_avg_factor,
            train_cfg: of the losses.
        ignored: `with_position` and `depth_step`, which upstream ignores too, and `code_size`, which must be
            10.

    Raises:
        ConfigError: a key or value that is not supported, by name.
    """

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
        with_dn: bool = True,
        with_ego_pos: bool = True,
        match_with_velo: bool = True,
        match_costs: Sequence[float] | None = None,
        transformer: dict | None = None,
        sync_cls_avg_factor: bool = False,
        code_weights: Sequence[float] | None = None,
        bbox_coder: dict | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_iou: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        depth_num: int = 64,
        LID: bool = False,
        depth_start: float = 1,
        position_range: Sequence[float] = (-65, -65, -8.0, 65, 65, 8.0),
        scalar: int = 5,
        noise_scale: float = 0.4,
        noise_trans: float = 0.0,
        dn_weight: float = 1.0,
        split: float = 0.5,
        normedlinear: bool = False,
        init_cfg: dict | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.in_channels, self.embed_dims = num_classes, in_channels, embed_dims
        self.stride, self.num_query, self.num_reg_fcs = stride, num_query, num_reg_fcs
        self.memory_len, self.topk_proposals, self.num_propagated = memory_len, topk_proposals, num_propagated
        self.with_ego_pos, self.depth_num, self.normedlinear = with_ego_pos, depth_num, normedlinear
        self.with_dn, self.scalar, self.dn_weight, self.split = with_dn, scalar, dn_weight, split
        self.bbox_noise_scale, self.bbox_noise_trans = noise_scale, noise_trans
        self.match_with_velo, self.sync_cls_avg_factor, self.bg_cls_weight = (
            match_with_velo,
            sync_cls_avg_factor,
            0,
        )
        self.code_size, self.train_cfg, self.test_cfg, self.fp16_enabled = (
            CODE_SIZE,
            train_cfg,
            test_cfg,
            False,
        )
        self._check(ignored)

        self._build_losses(loss_cls, loss_bbox, loss_iou, train_cfg)
        self.bbox_coder = build_bbox_coder(bbox_coder)
        weights = list(code_weights or [1.0] * 8 + [0.2] * 2)[:CODE_SIZE]
        self.code_weights = _constant(weights)
        self.match_costs = _constant(match_costs or weights)
        self.pc_range = _constant(self.bbox_coder.pc_range)
        self.position_range = _constant(position_range)
        self.coords_d = nn.Parameter(
            rays.depth_bins(depth_num, depth_start, self.position_range[3], LID), requires_grad=False
        )
        self._build_layers()
        self.transformer = build_transformer(transformer)
        self._check_layers()
        self.memory: Memory | None = None

    # ---- building

    def _check(self, ignored: dict[str, Any]) -> None:
        """Refuse what this head cannot do."""
        unknown = sorted(set(ignored) - IGNORED_KEYS)
        num_all = self.num_query + self.num_propagated
        wrong = {
            f'unknown keys {", ".join(unknown)}': bool(unknown),
            f'code_size={ignored.get("code_size")}: boxes have 10 numbers, velocity included': ignored.get(
                'code_size', 10
            )
            != 10,
            f'in_channels={self.in_channels} must equal embed_dims={self.embed_dims}': self.in_channels
            != self.embed_dims,
            f'embed_dims={self.embed_dims} must be a multiple of 4': bool(self.embed_dims % 4),
            f'depth_num={self.depth_num}: the cone takes a point 30 bins from the end': self.depth_num
            < -CONE_BIN,
            f'num_propagated={self.num_propagated} exceeds memory_len={self.memory_len}': self.num_propagated
            > self.memory_len,
            f'topk_proposals={self.topk_proposals} exceeds the {num_all} queries': self.topk_proposals
            > num_all,
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(f'{type(self).__name__}: {what}')

    def _check_layers(self) -> None:
        """Refuse a decoder that does not fit the head."""
        decoder = self.transformer.decoder
        if decoder.embed_dims != self.embed_dims:
            raise ConfigError(
                f'{type(self).__name__}: embed_dims={self.embed_dims}, the decoder has {decoder.embed_dims}'
            )
        if decoder.num_layers > NUM_BRANCHES:
            raise ConfigError(
                f'{type(self).__name__}: num_layers={decoder.num_layers}; there are {NUM_BRANCHES} branches'
            )

    def _build_losses(
        self, loss_cls: dict | None, loss_bbox: dict | None, loss_iou: dict | None, train_cfg: dict | None
    ) -> None:
        if not (loss_cls or {}).get('use_sigmoid'):
            raise ConfigError(
                f'{type(self).__name__}: loss_cls.use_sigmoid must be True: scores are sigmoids'
            )
        self.loss_cls = build_loss(loss_cls)
        self.loss_bbox = build_loss(loss_bbox or dict(type='L1Loss', loss_weight=5.0))
        self.loss_iou = build_loss(loss_iou or dict(type='GIoULoss', loss_weight=2.0))
        self.cls_out_channels = self.num_classes
        if train_cfg:
            self.assigner = build_assigner(train_cfg['assigner'])
            self.sampler = build_sampler(dict(type='PseudoSampler'), context=self)

    def _build_layers(self) -> None:
        dims = self.embed_dims
        classifier = NormedLinear if self.normedlinear else Linear
        cls_branch, reg_branch = [], []
        for _ in range(self.num_reg_fcs):
            cls_branch += [Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU(inplace=True)]
            reg_branch += [Linear(dims, dims), nn.ReLU()]
        cls_branch = nn.Sequential(*cls_branch, classifier(dims, self.cls_out_channels))
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
            self.ego_pose_pe = MLN(180, dims)
            self.ego_pose_memory = MLN(180, dims)

    def init_weights(self) -> None:
        """Uniform points, Xavier transformer, and a classifier that starts at probability 0.01."""
        nn.init.uniform_(self.reference_points.weight, 0, 1)
        if self.num_propagated:
            nn.init.uniform_(self.pseudo_reference_points.weight, 0, 1)
        self.transformer.init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Load, with the names that files before version 2, and plain dicts of tensors, may have."""
        if (local_metadata.get('version') or 0) < 2:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                renamed = key
                for old, new in LEGACY_NAMES.items():
                    renamed = renamed.replace(old, new)
                if renamed != key:
                    state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    # ---- eager runs, with the state kept here in global coordinates

    def reset_memory(self) -> None:
        """Forget the state: the next frame starts a stream."""
        self.memory = None

    def embed_positions(
        self, lidar2img: Tensor, intrinsics: Tensor, pad_shape: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Run `position_embedding` on `lidar2img`, `intrinsics` (B, N, 4, 4) and the padded size in px."""
        num_cameras = lidar2img.shape[1]
        frustum = self.frustum(pad_shape, num_cameras)
        tokens_per_camera = frustum.shape[0] // num_cameras
        # in float64: a float32 inverse of a real calibration alone moves boxes by up to 5 mm
        img2lidar = lidar2img.double().inverse().to(lidar2img.dtype)
        tap('img2lidar', img2lidar.repeat_interleave(tokens_per_camera, dim=1))
        return self.position_embedding(
            img2lidar, self.focal_per_token(intrinsics, tokens_per_camera), frustum
        )

    def forward(
        self, img_feats: Tensor, img_metas: list[dict], topk_indexes: None = None, **data: Tensor
    ) -> dict[str, Any]:
        """Run one frame and keep the state.

        Args:
            img_feats: (B, N, C, h, w).
            img_metas: one dict per sample with 'pad_shape' (and the ground truth, for denoising).
            topk_indexes: tokens to use; only None, all of them, is supported.
            data: lidar2img, intrinsics (B, N, 4, 4), ego_pose, ego_pose_inv (B, 4, 4), timestamp (B,) float64
                s, prev_exists (B,) float32; other keys are not used.

        Returns:
            all_cls_scores, all_bbox_preds without denoising queries, and dn_mask_dict (None outside
            training).
        """
        if topk_indexes is not None:
            raise ConfigError(
                'focal token sampling (aux_2d_only=False) is not supported; leave topk_indexes None'
            )
        pos_embed_raw, cone = self.embed_positions(
            data['lidar2img'], data['intrinsics'], img_metas[0]['pad_shape'][0]
        )
        queries, attn_mask, mask_dict = self._training_queries(img_feats.shape[0], img_metas)
        pad_size = mask_dict['pad_size'] if mask_dict else 0
        outputs, _, pushed = self.step(
            img_feats,
            pos_embed_raw,
            cone,
            *self._state(data),
            data['prev_exists'],
            queries,
            attn_mask,
            pad_size,
        )
        self.memory = temporal.move(pushed, data['ego_pose'], -data['timestamp'])
        tap_memory('post_mem', self.memory)
        return self._outputs(outputs, mask_dict, pad_size)

    def _state(self, data: dict[str, Tensor]) -> tuple[Memory, Tensor, Tensor]:
        """Return the state and what brings it into the current frame: nothing, where it is fresh."""
        if self.memory is not None:
            return self.memory, data['ego_pose_inv'], data['timestamp']
        poses = data['ego_pose_inv']
        fresh = temporal.empty(poses.shape[0], self.memory_len, self.embed_dims, poses.device, poses.dtype)
        identity = torch.eye(4, dtype=poses.dtype, device=poses.device).expand_as(poses)
        return fresh, identity, torch.zeros_like(data['timestamp'])

    def _training_queries(
        self, batch: int, img_metas: list[dict]
    ) -> tuple[Queries | None, Tensor | None, dict | None]:
        """Return denoising and learned queries, their mask and the losses' needs; Nones outside training."""
        if not (self.training and self.with_dn):
            return None, None, None
        from projects.mmdet3d_plugin.streampetr import denoising

        points, attn_mask, mask_dict = denoising.prepare(self, batch, self.reference_points.weight, img_metas)
        return self.queries_at(points), attn_mask, mask_dict

    def _outputs(self, outputs: dict[str, Tensor], mask_dict: dict | None, pad_size: int) -> dict[str, Any]:
        cls_scores, bbox_preds = outputs['all_cls_scores'], outputs['all_bbox_preds']
        if pad_size:
            known = (cls_scores[:, :, :pad_size], bbox_preds[:, :, :pad_size])
            mask_dict = {**mask_dict, 'output_known_lbs_bboxes': known}
        return {
            'all_cls_scores': tap('all_cls_scores', cls_scores[:, :, pad_size:]),
            'all_bbox_preds': tap('all_bbox_preds', bbox_preds[:, :, pad_size:]),
            'dn_mask_dict': mask_dict if pad_size else None,
        }

    def loss(
        self, gt_bboxes_list: list, gt_labels_list: list, preds_dicts: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return the losses by name, see `losses.head_losses`."""
        from projects.mmdet3d_plugin.streampetr import losses

        return losses.head_losses(self, gt_bboxes_list, gt_labels_list, preds_dicts)

    def get_bboxes(
        self, preds_dicts: dict[str, Tensor], img_metas: list[dict], rescale: bool = False
    ) -> list[list]:
        """Return, per sample, boxes (n, 9) of `img_metas`' box type, scores (n,) and labels (n,)."""
        results = []
        for decoded, meta in zip(self.bbox_coder.decode(preds_dicts), img_metas, strict=True):
            bboxes = decoded['bboxes'].clone()
            # mmdet3d's boxes stand on the centre of their bottom
            bboxes[:, 2] -= bboxes[:, 5] * 0.5
            results.append(
                [meta['box_type_3d'](bboxes, bboxes.shape[-1]), decoded['scores'], decoded['labels']]
            )
        return results


@HEADS.register_module()
class StreamPETRHeadPTH(StreamPETRHead):
    """The name that the deployment fork's `_pth` configs use."""


@HEADS.register_module()
class StreamPETRHeadONNX(StreamPETRHead):
    """The name that the deployment fork's `_onnx` configs use."""


def _constant(values: Sequence[float]) -> nn.Parameter:
    """Return numbers that checkpoints hold as a parameter, never trained."""
    return nn.Parameter(torch.tensor(list(values), dtype=torch.float32), requires_grad=False)


def _two_linear(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
