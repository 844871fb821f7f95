"""The family of FlashOcc: claimed and refused configs, and the models."""

from typing import Any

from torch import nn

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.families.common.lift_graphs import view_facts
from mmdeploy_ext.families.common.lift_models import LiftFamily, LiftModels, check_view
from mmdeploy_ext.families.common.runtime.lift_splat import LiftFacts
from mmdeploy_ext.runtime.occupancy import Occupancy
from mmdeploy_ext.systems.flashocc.graphs import graphs
from mmdeploy_ext.systems.flashocc.reference import FlashOccReference
from mmdeploy_ext.systems.flashocc.runtime import FORM, LOGITS, FlashOccOnnx

CLASSES = (
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle', 'pedestrian',
    'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat', 'sidewalk', 'terrain', 'manmade',
    'vegetation', 'free',
)  # fmt: skip
"""Classes of Occ3D-nuScenes by label."""


class FlashOccFamily(LiftFamily):
    name, task = 'flashocc', 'occupancy'
    models = LiftModels(
        detectors=('BEVDetOCC', 'BEVDepthOCC'),
        heads=('BEVOCCHead2D', 'BEVOCCHead2D_V2'),
        head_key='occ_head',
        needed_settings=dict(use_predicter=True),
        absent_settings=dict(use_predicter=True),
        check_further=check_view,
    )
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_occ', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'img_view_transformer.forward', 'get_occ',
        'get_occ_gpu',
    )  # fmt: skip
    files = (FORM,)
    opens = FlashOccOnnx
    class_names = CLASSES
    reference, graphs, facts = staticmethod(FlashOccReference), staticmethod(graphs), staticmethod(view_facts)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.occ_head.num_classes)

    def memory_spec(self, facts: LiftFacts) -> MemorySpec:
        return MemorySpec(needed=(LOGITS,))

    def result(self, detections: Occupancy) -> Any:
        return detections.labels
