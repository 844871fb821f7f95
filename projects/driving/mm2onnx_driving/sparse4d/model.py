"""Sparse4D's third version at test time: detector, supported settings, head in the order of its config.

Anchors (11 columns: `layers/sparse_instances.py`) and boxes are in the present LiDAR frame.

Source: HorizonRobotics/Sparse4D c41df4b, models/sparse4d.py, models/sparse4d_head.py and
models/detection3d/decoder.py.
Glossary: B batch, N cameras, A instances of a frame, M remembered instances, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.registry import (
    ATTENTION,
    FEEDFORWARD_NETWORK,
    NORM_LAYERS,
    PLUGIN_LAYERS,
    POSITIONAL_ENCODING,
)
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models import DETECTORS, HEADS, build_backbone, build_head, build_neck
from torch import Tensor, nn

from mm2onnx_driving.layers import sparse_instances
from mm2onnx_driving.layers.sparse_instances import (
    CENTRE,
    LOG_SIZE,
    NUMBERS,
    VELOCITY,
    Features,
    Pictures,
    Remembered,
    flatten_maps,
    run_head,
)
from mmdeploy_ext.base.errors import ConfigError, DataError, one_line
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# The memory of Sparse4D: instances of the last frame, their confidences and track ids.
#
# In kept anchors that `get` has moved, cosine and sine have changed places, as upstream. Anchors: see
# `blocks.py`.
#
# Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py.
# Glossary: B batch, A instances of a frame, M remembered instances, C channels, K classes.


NO_ID = -1


def read_anchors(anchor: str | Sequence, count: int) -> Tensor:
    """Return the first `count` anchors (A, 11) float32 of a numpy file or list."""
    if isinstance(anchor, str):
        if not Path(anchor).is_file():
            return torch.zeros(count, NUMBERS)
        try:
            anchor = np.load(anchor, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ConfigError(
                f'InstanceBank: anchor {anchor} cannot be read as a numpy array ({one_line(error)}); copy '
                'it again'
            ) from error
    anchors = torch.tensor(np.asarray(anchor)[:count], dtype=torch.float32)
    if anchors.ndim != 2 or anchors.shape[1] != NUMBERS:
        raise ConfigError(
            f'InstanceBank: anchor has {tuple(anchors.shape)} numbers, expected rows of {NUMBERS}'
        )
    return anchors


@registered_if_named(PLUGIN_LAYERS)
class InstanceBank(BaseModule):
    """The learned instances, and kept instances of the last frame.

    Args:
        num_anchor: largest A.
        embed_dims: C.
        num_temp_instances: M, above 0 and below A.
        anchor: see `read_anchors`.
        anchor_handler: config of the module that moves anchors to another frame.
        default_time_interval: seconds; replaces an interval in a first frame, of 0, or too long.
        confidence_decay: least share of its last confidence for a kept instance.
        max_time_interval: seconds; after a longer gap kept instances are not used.
        training: unused.

    Attributes (None before the first frame):
        cached_feature, cached_anchor: (B, M, C), (B, M, 11) kept; `get` moves anchors to the present.
        confidence: (B, M).
        temp_confidence: (B, A) of all instances.
        mask: (B,) bool, whether the kept instances are used.
        kept: (B, M) rows of the last frame.
        instance_id: (B, A) int64 ids of the kept instances, then `NO_ID`.
    """

    def __init__(
        self,
        num_anchor: int,
        embed_dims: int,
        anchor: str | Sequence,
        anchor_handler: dict | None = None,
        num_temp_instances: int = 0,
        default_time_interval: float = 0.5,
        confidence_decay: float = 0.6,
        max_time_interval: float = 2,
        **training: Any,
    ) -> None:
        super().__init__()
        if anchor_handler is None or num_temp_instances <= 0:
            raise ConfigError(
                f'InstanceBank: anchor_handler={anchor_handler}, num_temp_instances={num_temp_instances}; '
                f'expected a config and a positive number, as in Sparse4D v3'
            )
        anchors = read_anchors(anchor, num_anchor)
        if num_temp_instances >= len(anchors):
            raise ConfigError(
                f'InstanceBank: num_temp_instances={num_temp_instances}, expected fewer than the '
                f'{len(anchors)} anchors'
            )
        self.num_anchor = len(anchors)
        self.embed_dims, self.num_temp_instances = embed_dims, num_temp_instances
        self.default_time_interval, self.max_time_interval = default_time_interval, max_time_interval
        self.confidence_decay = confidence_decay
        self.anchor_handler = build_from_cfg(anchor_handler, PLUGIN_LAYERS)
        self.anchor = nn.Parameter(anchors, requires_grad=False)
        self.instance_feature = nn.Parameter(torch.zeros(self.num_anchor, embed_dims), requires_grad=False)
        self.reset()

    def reset(self) -> None:
        """Forget everything; ids begin at 0."""
        self.cached_feature = self.cached_anchor = None
        self.metas: Mapping[str, Any] | None = None
        self.mask = self.confidence = self.temp_confidence = self.kept = self.instance_id = None
        self.prev_id = 0

    def get(self, metas: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return learned features (B, A, C) and anchors (B, A, 11), and the time interval (B,), seconds.

        Kept anchors are moved into the present LiDAR frame. `metas` has `timestamp` (B,) float64 seconds and
        `img_metas`, a dict per sample with `T_global` and `T_global_inv` (4, 4) float64, LiDAR to global and
        back.
        """
        batch = len(metas['img_metas'])
        feature, anchor = (rows[None].repeat(batch, 1, 1) for rows in (self.instance_feature, self.anchor))
        if self.cached_anchor is None or len(self.cached_anchor) != batch:
            self.reset()
            return feature, anchor, feature.new_full((batch,), self.default_time_interval)
        seconds = (metas['timestamp'] - self.metas['timestamp']).to(feature.dtype)
        self.mask = seconds.abs() <= self.max_time_interval
        pairs = zip(metas['img_metas'], self.metas['img_metas'], strict=True)
        motion = np.stack([now['T_global_inv'] @ before['T_global'] for now, before in pairs])
        self.cached_anchor = self.anchor_handler.anchor_projection(
            self.cached_anchor, feature.new_tensor(motion), seconds
        )
        if self.instance_id is not None:
            self.instance_id = torch.where(self.mask[:, None], self.instance_id, NO_ID)
        default = torch.full_like(seconds, self.default_time_interval)
        return feature, anchor, torch.where((seconds != 0) & self.mask, seconds, default)

    def remembered(self) -> Remembered | None:
        if self.cached_feature is None:
            return None
        return Remembered(self.cached_feature, self.cached_anchor, self.mask)

    def cache(self, feature: Tensor, anchor: Tensor, logits: Tensor, metas: Mapping[str, Any]) -> None:
        """Keep the M most confident instances of a frame; the remembered instances come first.

        `feature` is (B, A, C), `anchor` (B, A, 11), `logits` (B, A, K). The first M have at least
        `confidence_decay` times the kept confidence of their row; as upstream, even if too old.
        """
        confidence = logits.amax(-1).sigmoid()
        if self.confidence is not None:
            decayed = self.confidence * self.confidence_decay
            kept = torch.maximum(decayed, confidence[:, : self.num_temp_instances])
            confidence = torch.cat([kept, confidence[:, self.num_temp_instances :]], 1)
        self.metas, self.temp_confidence = metas, confidence
        self.confidence, self.kept = sparse_instances.best_rows(confidence, self.num_temp_instances)
        self.cached_feature, self.cached_anchor = rows_of(feature, self.kept), rows_of(anchor, self.kept)

    def get_instance_id(self, logits: Tensor, threshold: float | None = None) -> Tensor:
        """Return the ids (B, A) int64 of a frame's instances after `cache`, and keep the kept ids.

        Instances without an id get the next ids by row, or NO_ID if `logits` (B, A, K) score below
        `threshold`.
        """
        ids = torch.full(logits.shape[:2], NO_ID, dtype=torch.int64, device=logits.device)
        if self.instance_id is not None and len(self.instance_id) == len(ids):
            ids = self.instance_id.clone()
        is_new = ids < 0
        if threshold is not None:
            is_new &= logits.amax(-1).sigmoid() >= threshold
        count = int(is_new.sum())
        ids[is_new] = torch.arange(self.prev_id, self.prev_id + count, device=ids.device)
        self.prev_id += count
        padding = ids.new_full((len(ids), self.num_anchor - self.num_temp_instances), NO_ID)
        self.instance_id = torch.cat([ids.gather(1, self.kept), padding], 1)
        return ids


def rows_of(values: Tensor, indices: Tensor) -> Tensor:
    """Return rows (B, m, n) of values (B, A, n) by their indices (B, m)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


# ---- detector


@registered_if_named(DETECTORS)
class Sparse4D(BaseModule):
    """Camera-only detector and tracker that runs a drive frame by frame."""

    def __init__(
        self,
        img_backbone: dict,
        head: dict,
        img_neck: dict,
        use_deformable_func: bool = False,
        depth_branch: dict | None = None,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not use_deformable_func:
            raise ConfigError(
                'Sparse4D: use_deformable_func=False gives other results at image borders than the '
                'trained weights expect; expected True'
            )
        self.img_backbone, self.img_neck = build_backbone(img_backbone), build_neck(img_neck)
        self.head = build_head(head)
        self.depth_branch = depth_branch and build_from_cfg(depth_branch, PLUGIN_LAYERS)

    def extract_feat(self, img: Tensor) -> Features:
        """Return the feature maps of pictures (1, N, 3, H, W)."""
        return flatten_maps(self.img_neck(self.img_backbone(img[0])))

    def forward(self, img: Tensor, **data: Any) -> list[dict]:
        """Return per sample 'img_bbox' -> the dict of `SparseBox3DDecoder.decode`.

        `img` is (1, N, 3, H, W), `data` the `metas` of `Sparse4DHead.forward`.
        """
        if self.training:
            raise NotImplementedError("mm2onnx's Sparse4D cannot train; use its own repository")
        if isinstance(img, list):
            if len(img) != 1:
                raise DataError(
                    f'Sparse4D supports one augmentation at test time, got {len(img)}; keep one in '
                    'the pipeline'
                )
            img = img[0]
            data = {key: value[0] if isinstance(value, list) else value for key, value in data.items()}
        data.pop('return_loss', None), data.pop('rescale', None)
        outputs = self.head(self.extract_feat(tap('img', img)), data)
        return [dict(img_bbox=result) for result in self.head.post_process(outputs)]


# ---- head

OPERATIONS = ('temp_gnn', 'gnn', 'norm', 'deformable', 'ffn', 'refine')


@registered_if_named(BBOX_CODERS)
class SparseBox3DDecoder:
    """The best instances of a frame as boxes."""

    def __init__(
        self, num_output: int = 300, score_threshold: float | None = None, sorted: bool = True
    ) -> None:
        self.num_output, self.score_threshold, self.sorted = num_output, score_threshold, sorted

    def decode(self, logits: Tensor, anchor: Tensor, ids: Tensor, quality: Tensor) -> list[dict[str, Tensor]]:
        """Return a dict per sample of its n boxes, best first.

        Args:
            logits: (B, A, K).
            anchor: (B, A, 11).
            ids: (B, A) int64.
            quality: (B, A, 2) logits of centerness and yawness.

        Returns:
            `boxes_3d` (n, 10): x, y, z of the centre, length, width, height (m), yaw (radians, -pi to pi,
                counter-clockwise from x), velocity x, y, z (m/s); `scores_3d` (n,), times the centerness;
                `labels_3d`, `instance_ids` (n,); `cls_scores` (n,) without the centerness, sorted by
                themselves as upstream: row i is not of box i.
        """
        scores, labels = logits.sigmoid().max(-1)
        first, rows = scores.topk(self.num_output, 1, sorted=self.sorted)
        final = first * quality[..., 0].gather(1, rows).sigmoid()
        final, order = final.sort(1, descending=True)
        rows = rows.gather(1, order)
        passing = torch.ones_like(final, dtype=torch.bool)
        if self.score_threshold is not None:
            passing = (first >= self.score_threshold).gather(1, order)
        return [
            dict(
                boxes_3d=boxes_of(anchor[sample, rows[sample]])[keep],
                scores_3d=final[sample][keep],
                labels_3d=labels[sample, rows[sample]][keep],
                cls_scores=first[sample][keep],
                instance_ids=ids[sample, rows[sample]][keep],
            )
            for sample, keep in enumerate(passing)
        ]


def boxes_of(anchor: Tensor) -> Tensor:
    """Return boxes (n, 10) of anchors (n, 11)."""
    yaw = torch.atan2(anchor[:, 6], anchor[:, 7])[:, None]
    return torch.cat([anchor[:, CENTRE], anchor[:, LOG_SIZE].exp(), yaw, anchor[:, VELOCITY]], -1)


@registered_if_named(HEADS)
class Sparse4DHead(BaseModule):
    def __init__(
        self,
        instance_bank: dict,
        anchor_encoder: dict,
        graph_model: dict,
        norm_layer: dict,
        ffn: dict,
        deformable_model: dict,
        refine_layer: dict,
        temp_graph_model: dict,
        decoder: dict,
        operation_order: Sequence[str],
        num_single_frame_decoder: int = -1,
        decouple_attn: bool = True,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.operation_order = list(operation_order)
        is_known = not {*self.operation_order} - {*OPERATIONS} and self.operation_order[-1:] == ['refine']
        if not decouple_attn or not is_known:
            raise ConfigError(
                f'Sparse4DHead: decouple_attn={decouple_attn}, operation_order={self.operation_order}; '
                f'expected True, and operations from {", ".join(OPERATIONS)} with refine last'
            )
        self.num_single_frame_decoder = num_single_frame_decoder
        self.instance_bank = build_from_cfg(instance_bank, PLUGIN_LAYERS)
        self.anchor_encoder = build_from_cfg(anchor_encoder, POSITIONAL_ENCODING)
        self.decoder = build_from_cfg(decoder, BBOX_CODERS)
        if self.decoder.num_output > self.instance_bank.num_anchor:
            raise ConfigError(
                f'Sparse4DHead: decoder.num_output={self.decoder.num_output} is more than '
                f'instance_bank.num_anchor={self.instance_bank.num_anchor}'
            )
        configs = dict(
            temp_gnn=(temp_graph_model, ATTENTION),
            gnn=(graph_model, ATTENTION),
            norm=(norm_layer, NORM_LAYERS),
            deformable=(deformable_model, ATTENTION),
            ffn=(ffn, FEEDFORWARD_NETWORK),
            refine=(refine_layer, PLUGIN_LAYERS),
        )
        layers = []
        for kind in self.operation_order:
            cfg, registry = configs[kind]
            layers.append(build_from_cfg(dict(cfg), registry))
        self.layers = nn.ModuleList(layers)
        channels = self.instance_bank.embed_dims
        self.fc_before = nn.Linear(channels, 2 * channels, bias=False)
        self.fc_after = nn.Linear(2 * channels, channels, bias=False)

    def forward(self, features: Features, metas: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last layer's predictions, and keep instances and ids for the next frame.

        Args:
            features: feature maps of the cameras.
            metas: `timestamp` and `img_metas`, see `InstanceBank.get`; `projection_mat` (1, N, 4, 4), LiDAR
                frame to pixels times depth; `image_wh` (1, N, 2), width and height of the input, pixels.

        Returns:
            'prediction' (1, A, 11), 'classification' (1, A, K) and 'quality' (1, A, 2), each in a list;
                'instance_id' (1, A) int64, -1 without an id.
        """
        bank = self.instance_bank
        *learned, interval = bank.get(metas)
        pictures = Pictures(*features, metas['projection_mat'][0], metas['image_wh'][0])
        feature, anchor, logits, quality = run_head(self, pictures, interval, bank.remembered(), learned)
        bank.cache(feature, anchor, logits, metas)
        ids = bank.get_instance_id(logits, self.decoder.score_threshold)
        return dict(prediction=[anchor], classification=[logits], quality=[quality], instance_id=ids)

    def post_process(self, outputs: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        last = (outputs[name][-1] for name in ('classification', 'prediction', 'quality'))
        logits, anchor, quality = last
        return self.decoder.decode(logits, anchor, outputs['instance_id'], quality)
