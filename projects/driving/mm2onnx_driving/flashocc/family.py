"""The family of FlashOcc: claimed and refused configs, and the models."""

from typing import Any

from torch import nn

from mm2onnx_driving.common.camera_models import is_one_of
from mm2onnx_driving.common.lift_models import LiftFamily, LiftModels, check_view
from mm2onnx_driving.flashocc.graphs import HEAD, facts_of, graphs
from mm2onnx_driving.flashocc.instances import CENTER_MAPS, FlashOccFacts
from mm2onnx_driving.flashocc.reference import FlashOccReference
from mm2onnx_driving.flashocc.runtime import FORM, LOGITS
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.occupancy import Occupancy
from mmdeploy_ext.spec.memory import MemorySpec

CLASSES = (
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle', 'pedestrian',
    'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat', 'sidewalk', 'terrain', 'manmade',
    'vegetation', 'free',
)  # fmt: skip
"""Classes of Occ3D-nuScenes by label."""
OF_SEVERAL_FRAMES = 'BEVDepth4DOCC', 'BEVDepth4DPano', 'BEVStereo4DOCC'
PARTS = '--parts img_backbone+img_neck img_bev_encoder_backbone+img_bev_encoder_neck occ_head'


def check_model(cfg: Any) -> None:
    """Raise ConfigError for views and heads of centres that are not exported."""
    check_view(cfg)
    head = cfg.model.get(HEAD)
    if head and (len(head.tasks) != 1 or not head.bbox_coder.get('score_threshold')):
        raise ConfigError(
            f'{cfg.filename}: model.{HEAD}: {len(head.tasks)} tasks, bbox_coder.score_threshold='
            f'{head.bbox_coder.get("score_threshold")}; expected one task and a threshold'
        )


class FlashOccModels(LiftModels):
    def check(self, cfg: Any) -> None:
        if is_one_of(OF_SEVERAL_FRAMES, cfg.model):
            raise ConfigError(
                f'{cfg.filename}: model.type={cfg.model.type!r} reads past frames; the graph has no input '
                f'for them; expected {" or ".join(self.detectors)}; or export its parts: {PARTS}'
            )
        super().check(cfg)


class FlashOccFamily(LiftFamily):
    name, task = 'flashocc', 'occupancy'
    models = FlashOccModels(
        detectors=('BEVDetOCC', 'BEVDepthOCC', 'BEVDepthPano'),
        heads=('BEVOCCHead2D', 'BEVOCCHead2D_V2'),
        head_key='occ_head',
        needed_settings=dict(use_predicter=True),
        absent_settings=dict(use_predicter=True),
        check_further=check_model,
    )
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_occ', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'img_view_transformer.forward', 'get_occ',
        'get_occ_gpu', 'simple_test_aux_centerness', 'aux_centerness_head.get_centers',
    )  # fmt: skip
    files = (FORM,)
    class_names = CLASSES
    reference, graphs, facts = staticmethod(FlashOccReference), staticmethod(graphs), staticmethod(facts_of)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.occ_head.num_classes)

    def memory_spec(self, facts: FlashOccFacts) -> MemorySpec:
        return MemorySpec(needed=(LOGITS, *(CENTER_MAPS if facts.centers else ())))

    def result(self, detections: Occupancy) -> Any:
        return detections.labels
