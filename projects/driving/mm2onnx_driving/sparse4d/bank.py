"""The memory of Sparse4D: instances of the last frame, their confidences and track ids.

In kept anchors that `get` has moved, cosine and sine have changed places, as upstream. Anchors: see
`blocks.py`.

Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py.
Glossary: B batch, A instances of a frame, M remembered instances, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.registry import PLUGIN_LAYERS
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from torch import Tensor, nn

from mm2onnx_driving.layers.sparse_instances import steps
from mm2onnx_driving.layers.sparse_instances.steps import NUMBERS, Remembered
from mmdeploy_ext.base.errors import ConfigError, one_line
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

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
        self.confidence, self.kept = steps.best_rows(confidence, self.num_temp_instances)
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
