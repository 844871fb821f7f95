"""BEVFormer at test time: detector and head.

Source: fundamentalvision/BEVFormer 66b65f3, `dense_heads/bevformer_head.py`.
Glossary: N cameras, C channels, Q cells of the bird's-eye view, L decoder layers, R queries of objects, K
classes.
"""

from collections.abc import Sequence
from typing import Any

from mmdet.models import DETECTORS, HEADS
from torch import Tensor

from mm2onnx_driving.layers.bev_view.head import BevHead
from mm2onnx_driving.layers.bev_view.steps import decode_objects
from mm2onnx_driving.layers.camera_detector import BevDetector
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import decoded_samples


@registered_if_named(DETECTORS)
class BEVFormer(BevDetector):
    """Bird's-eye view and objects."""


@registered_if_named(HEADS)
class BEVFormerHead(BevHead):
    """Feature maps of all cameras to the bird's-eye view and objects."""

    def forward(
        self, maps: Sequence[Tensor], img_metas: list[dict], prev_bev: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return 'bev_embed' (Q, 1, C), 'all_cls_scores' and 'all_bbox_preds' of `steps.Objects`."""
        view = self.encode(maps, img_metas, prev_bev)
        found = decode_objects(self, view)
        return dict(bev_embed=view.transpose(0, 1), all_cls_scores=found.logits, all_bbox_preds=found.boxes)

    def get_bboxes(self, outputs: dict[str, Tensor], img_metas: list[dict]) -> list[list[Any]]:
        """Return [boxes, scores (n,), labels (n,)] per sample, best first, of the last decoder layer."""
        return decoded_samples(self.bbox_coder, outputs, img_metas)
