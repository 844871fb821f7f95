"""Sparse4D: supported configs and models."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.common.camera_data import InstanceData
from mm2onnx_driving.common.camera_models import CameraFamily, CameraModels, is_one_of
from mm2onnx_driving.common.instance_graphs import (
    KEPT_PLACES,
    KEPT_SCORES,
    VALUES,
    camera_steps,
    spread_anchors,
)
from mm2onnx_driving.common.runtime.instances import InstanceBoxes
from mm2onnx_driving.sparse4d.graphs import graphs
from mm2onnx_driving.sparse4d.model import check_version
from mm2onnx_driving.sparse4d.reference import Sparse4DReference
from mm2onnx_driving.sparse4d.runtime import FORM, PREDICTIONS, Sparse4DFacts
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import samples
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup

MEMORY = dict(
    cached_feature=VALUES,
    cached_anchor=KEPT_PLACES,
    confidence=KEPT_SCORES,
    prev_id=ColumnGroup(rtol=0.0, atol=0.0),
)
INSTANCES = InstanceRows(
    tensors=('cached_feature', 'cached_anchor', 'confidence', 'instance_id'),
    place=('cached_anchor', 'pred_anchor'),
    per_query=PREDICTIONS,
    confidence='confidence',
    first_scores='first_scores',
    ids=('instance_id', 'instance_id', 'prev_id'),
)


class Sparse4DData(InstanceData):
    compared = PREDICTIONS


class Sparse4DFamily(CameraFamily, SequenceFamily):
    name = 'sparse4d'
    models = CameraModels(
        detectors=('Sparse4D',),
        heads=('Sparse4DHead',),
        head_key='head',
        needed_settings=dict(decouple_attn=True),
        absent_settings=dict(decouple_attn=True),
        check_further=check_version,
        camera_settings=lambda cfg: part_cfg(cfg.model, 'head').get('deformable_model') or {},
        camera_steps=camera_steps,
    )
    untraced = (
        '.extract_feat', '.forward', 'forward_test', 'simple_test', 'head.forward', 'graph_model',
        'post_process', 'decode', 'decode_box', 'head.instance_bank.get', 'head.instance_bank.update',
        'cache', 'head.instance_bank.reset', 'get_instance_id', 'update_instance_id', '_get_weights',
        'project_points', 'head.anchor_encoder.forward', 'DeformableFeatureAggregation.forward',
        'SparseBox3DRefinementModule.forward', 'MultiheadAttention.forward', 'anchor_projection',
        '*kps_generator.forward', 'grid_mask.forward',
    )  # fmt: skip
    files = (FORM,)
    ignores_places = True  # the bank composes poses in float64
    ignored_prefixes = ('depth_branch.', 'head.instance_bank.anchor_handler.')
    data = Sparse4DData()
    reference, graphs = staticmethod(Sparse4DReference), staticmethod(graphs)

    def claims(self, cfg: Any) -> Claim:
        if is_one_of(self.models.detectors, cfg.model):
            return Claim.DETECTOR
        heads = [part_cfg(cfg.model, key) for key in ('head', 'pts_bbox_head')]
        is_head = any(is_one_of(self.models.heads, head) for head in heads)
        return Claim.HEAD if is_head else Claim.NO

    def build(self, cfg: Any) -> nn.Module:
        bank = self.models.head_of(cfg).get('instance_bank') or {}
        anchor = bank.get('anchor')
        if isinstance(anchor, str) and not Path(anchor).is_file():
            # every checkpoint has the anchors, which the file only initialises
            with replaced_entry(bank, 'anchor', spread_anchors(int(bank['num_anchor'])).tolist()):
                model = super().build(cfg)
            model.head.instance_bank.anchor.requires_grad_(False)
            return model
        return super().build(cfg)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.head.layers[-1].cls_layers[-1].out_features)

    def facts(self, model: nn.Module) -> Sparse4DFacts:
        bank, coder = model.head.instance_bank, model.head.decoder
        return Sparse4DFacts(
            max_num=int(coder.num_output),
            score_threshold=coder.score_threshold,
            num_classes=self.num_classes(model),
            num_instances=int(bank.num_anchor),
            num_temp=int(bank.num_temp_instances),
            confidence_decay=float(bank.confidence_decay),
            default_time_interval=float(bank.default_time_interval),
            max_time_interval=float(bank.max_time_interval),
        )

    def memory_spec(self, facts: Sparse4DFacts) -> MemorySpec:
        return MemorySpec(
            tensors=MEMORY,
            needed=PREDICTIONS,
            per_query=PREDICTIONS,
            instances=(INSTANCES,),
        )

    def result(self, detections: InstanceBoxes) -> dict[str, Any]:
        (entry,) = samples.result(detections).values()
        entry['cls_scores'] = torch.from_numpy(np.ascontiguousarray(detections.class_scores))
        return entry
