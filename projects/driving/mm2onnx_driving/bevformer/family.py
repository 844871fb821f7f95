"""BEVFormer: its graph, supported configs and models."""

from torch import nn

from mm2onnx_driving.bevformer.runtime import FORM
from mm2onnx_driving.common.bev_graphs import BevFrame, frame_spec, with_sampling
from mm2onnx_driving.common.bev_models import MEMORY, SETTINGS, BevFamily, check_memory
from mm2onnx_driving.common.bev_reference import BevReference
from mm2onnx_driving.common.camera_graphs import camera_graphs
from mm2onnx_driving.common.camera_models import CameraModels
from mm2onnx_driving.common.runtime.bev_frames import BevFacts
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec

# ---- graph


def spec(model: nn.Module) -> GraphSpec:
    return frame_spec(model, 'bevformer/portable')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = BevFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]


# ---- family


class BevFormerFamily(BevFamily):
    name = 'bevformer'
    models = CameraModels(
        detectors=('BEVFormer', 'BEVFormer_fp16'),
        heads=('BEVFormerHead',),
        needed_settings=SETTINGS,
        absent_settings=SETTINGS,
        check_further=check_memory,
        camera_settings=lambda cfg: part_cfg(cfg.model, 'pts_bbox_head').get('transformer') or {},
    )
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
