"""The family of BEVDet and BEVDet4D: the configs that it claims and refuses, and the models."""

from typing import Any

from torch import nn

from mm2onnx_driving.bevdet.graphs import VIEWS, facts_of, graphs
from mm2onnx_driving.bevdet.reference import BevDetReference
from mm2onnx_driving.bevdet.runtime import FORM, VIEW, BevDetFacts
from mm2onnx_driving.common.lift_models import LiftFamily, LiftModels, check_view
from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup

NMS_TYPES = ('rotate', 'circle')
PER_TASK = ('nms_type', 'nms_thr', 'nms_rescale_factor')
"""Test settings that may be lists of one value per task."""
EXACT = ColumnGroup(rtol=0.0, atol=1e-6)


def check_model(cfg: Any) -> None:
    """Raise ConfigError for views and suppressions that are not exported."""
    test, tasks = test_cfg_of(cfg).get('pts') or {}, len(cfg.model.pts_bbox_head.tasks)
    for key in PER_TASK:
        values = test.get(key)
        if isinstance(values, list | tuple) and len(values) < tasks:
            raise ConfigError(
                f'{cfg.filename}: {test_cfg_key(cfg)}.pts.{key}={list(values)}; expected one value, or '
                f'one for each of the {tasks} tasks'
            )
    kinds = test.get('nms_type')
    kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds]
    if not set(kinds) <= {*NMS_TYPES}:
        raise ConfigError(
            f'{cfg.filename}: {test_cfg_key(cfg)}.pts.nms_type={kinds}; expected {" or ".join(NMS_TYPES)}, '
            f'or a list of them'
        )
    check_view(cfg)


class BevDetFamily(LiftFamily):
    name = 'bevdet'
    models = LiftModels(
        detectors=('BEVDet', 'BEVDet4D', 'BEVDepth4D'), heads=('CenterHead',), check_further=check_model
    )
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'prepare_bev_feat', 'shift_feature', 'gen_grid',
        'img_view_transformer.forward', 'get_bboxes', 'get_task_detections', 'decode',
    )  # fmt: skip
    files = (FORM,)
    reference, graphs, facts = staticmethod(BevDetReference), staticmethod(graphs), staticmethod(facts_of)

    def num_classes(self, model: nn.Module) -> int:
        return sum(model.pts_bbox_head.num_classes)

    def memory_spec(self, facts: BevDetFacts) -> MemorySpec:
        if not facts.adjacent:
            return MemorySpec(needed=facts.output_names)
        tensors = dict(views=VIEWS, exists=EXACT, camera2ego=EXACT)
        return MemorySpec(tensors=tensors, outputs=dict(views=VIEW), needed=facts.output_names)
