"""BEVFormer: its graph, supported configs and models."""

from collections.abc import Sequence
from typing import Any

from mmdet.models import DETECTORS, HEADS
from torch import Tensor, nn

from mm2onnx_driving.bevformer.runtime import FORM
from mm2onnx_driving.common.bev import (
    MEMORY,
    BevFamily,
    BevFrame,
    BevReference,
    frame_spec,
    with_sampling,
)
from mm2onnx_driving.common.camera import camera_graphs
from mm2onnx_driving.common.runtime.bev_frames import BevFacts
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.layers.bev_steps import decode_objects
from mm2onnx_driving.layers.bev_view import BevHead
from mm2onnx_driving.layers.camera_detector import BevDetector
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import decoded_samples

# BEVFormer at test time: detector and head.
#
# Source: fundamentalvision/BEVFormer 66b65f3, `dense_heads/bevformer_head.py`.
# Glossary: N cameras, C channels, Q cells of the bird's-eye view, L decoder layers, R queries of objects, K
# classes.


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


# ---- graph


def spec(model: nn.Module) -> GraphSpec:
    return frame_spec(model, 'bevformer/portable')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = BevFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]


# ---- family


class BevFormerFamily(BevFamily):
    name = 'bevformer'
    detectors, heads = ('BEVFormer', 'BEVFormer_fp16'), ('BEVFormerHead',)
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'pts_bbox_head.forward', 'get_bboxes', 'decode', 'decode_single', '*transformer.forward',
        'get_bev_features', '*transformer.encoder.forward', 'get_reference_points', 'point_sampling',
        '*transformer.decoder.forward', '*encoder.layers.?.forward', '*attentions.?.forward',
        '*deformable_attention.forward', 'grid_mask.forward',
    )  # fmt: skip
    files = (FORM,)
    ignored_prefixes = ('pts_bbox_head.code_weights',)
    reference, graphs = staticmethod(BevReference), staticmethod(graphs)

    def facts(self, model: nn.Module) -> BevFacts:
        return BevFacts(**self.view_facts(model))

    def memory_spec(self, facts: BevFacts) -> MemorySpec:
        outputs = dict(bev_embed='bev_embed')
        return MemorySpec(tensors=MEMORY, outputs=outputs, needed=PREDICTIONS, per_query=PREDICTIONS)
