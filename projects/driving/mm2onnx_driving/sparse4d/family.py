"""Sparse4D: supported configs and models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import (
    CameraFamily,
    InstanceData,
    camera_graphs,
    feature_maps,
    is_one_of,
)
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instances import (
    ANCHOR_COLUMNS,
    ANCHORS,
    KEPT_PLACES,
    KEPT_SCORES,
    VALUES,
    InstanceNetwork,
    InstanceReference,
    camera_steps,
    first_refinement,
    first_scores,
    interval_spec,
    near_spec,
    spread_anchors,
)
from mm2onnx_driving.common.runtime.instances import InstanceBoxes
from mm2onnx_driving.layers import sparse_instances
from mm2onnx_driving.layers.sparse_instances import Remembered, feature_rows, run_head
from mm2onnx_driving.sparse4d.runtime import FORM, PREDICTIONS, Sparse4DFacts
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import ABSENT, Claim
from mmdeploy_ext.families.common import samples
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# Sparse4D's graph: one for all frames, pictures to instances; `memory.py` has the rest.


LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=VALUES.atol)


class PortableFrame(InstanceNetwork):
    """One frame, the first or a later one."""

    def __init__(self, model: nn.Module, grid_sample: bool) -> None:
        super().__init__(model)
        self.model, self.grid_sample = model, grid_sample

    def forward(
        self,
        img: Tensor,
        lidar2img: Tensor,
        time_interval: Tensor,
        temp_instance_feature: Tensor,
        temp_anchor: Tensor,
        mask: Tensor,
        has_temp: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = feature_rows(feature_maps(self.model, img))
        pictures = self.pictures(rows, lidar2img, self.grid_sample)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0.5, has_temp > 0.5)
        return run_head(self.model.head, pictures, time_interval, last)


def predictions(model: nn.Module) -> tuple[TensorSpec, ...]:
    bank = model.head.instance_bank
    rows = 1, bank.num_anchor
    channels, classes = bank.instance_feature.shape[1], model.head.layers[-1].cls_layers[-1].out_features
    entries = (
        (channels, 'instances', (VALUES,)),
        (sparse_instances.NUMBERS, ANCHOR_COLUMNS, ANCHORS),
        (classes, 'class logits', (LOGITS,)),
        (2, 'logits of centerness and yawness', (LOGITS,)),
    )
    return tuple(
        TensorSpec(name, 'float32', (*rows, columns), meaning, groups=groups, single=True)
        for name, (columns, meaning, groups) in zip(PREDICTIONS, entries, strict=True)
    )


def temporal_inputs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return the specs of `time_interval` and the last frame's instances."""
    bank = model.head.instance_bank
    rows, channels = (1, bank.num_temp_instances), bank.instance_feature.shape[1]
    kept = 'kept instances of the last frame'
    moved = 'anchors of the kept instances, projected to the current frame'
    return (
        interval_spec(bank),
        TensorSpec('temp_instance_feature', 'float32', (*rows, channels), kept, single=True),
        TensorSpec('temp_anchor', 'float32', (*rows, sparse_instances.NUMBERS), moved, single=True),
    )


def spec(model: nn.Module) -> GraphSpec:
    cameras, height, width = model.input_sizes
    exists = '0 at a first frame, where the last instances can be any finite values'
    inputs = (
        TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images'),
        TensorSpec('lidar2img', 'float32', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        *temporal_inputs(model),
        near_spec('mask', model.head.instance_bank),
        TensorSpec('has_temp', 'float32', (1,), exists, single=True),
    )
    return GraphSpec('sparse4d/portable', inputs, predictions(model))


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = PortableFrame(model, options.grid_sample == 'operator')
    return camera_graphs(model, options, [(FORM, module, spec(model))])


# Sparse4D in PyTorch as a stepper.


CACHED = ('cached_feature', 'cached_anchor', 'confidence')
LAST = dict(classification='pred_class_score', prediction='pred_anchor', quality='pred_quality_score')


class Sparse4DReference(InstanceReference):
    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'extract_feat'), (self.head, 'forward')])

    def forget(self) -> None:
        self.bank.reset()

    def memory(self) -> dict[str, np.ndarray]:
        tensors = {name: array(getattr(self.bank, name)) for name in CACHED}
        tensors['instance_id'] = array(self.bank.instance_id[:, : self.bank.num_temp_instances])
        return tensors | dict(prev_id=np.array([int(self.bank.prev_id)], np.int64))

    def remember(self, state: StreamState) -> None:
        for name in CACHED:
            setattr(self.bank, name, self.tensor(state.tensors[name]))
        ids = torch.full((1, self.bank.num_anchor), -1, dtype=torch.int64, device=self.device)
        ids[:, : self.bank.num_temp_instances] = torch.from_numpy(np.array(state.tensors['instance_id']))
        self.bank.instance_id, self.bank.prev_id = ids, int(state.tensors['prev_id'][0])
        self.bank.metas = self.moment(state.ego_pose, state.timestamp_s)

    def is_first(self, frame: Frame) -> bool:
        return self.bank.cached_anchor is None

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {  # our layers are not called: our head taps these two by itself
            self.head: lambda inputs, outputs: dict(outputs, rows=inputs[0][0]),
            self.head.layers[-1]: lambda inputs, refined: dict(instance_feature=inputs[0]),
            first_refinement(self.head): lambda inputs, refined: dict(first_logits=refined[1]),
        }

    def tensors(self, values: Mapping[str, Any], was_reset: bool) -> dict[str, np.ndarray]:
        return dict(
            pred_instance_feature=array(values['instance_feature']),
            **{name: array(values[key][-1]) for key, name in LAST.items()},
            instance_id=array(values['instance_id']),
            confidence=array(self.bank.temp_confidence),
            first_scores=first_scores(self.bank, None if was_reset else values['first_logits']),
        )

    def results(self, results: Sequence[Mapping[str, Any]]) -> InstanceBoxes:
        return boxes_of_result(results[0]['img_bbox'])

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        rows = torch.arange(tensors['pred_anchor'].shape[1], device=self.device)[None]
        last = {key: [tensors[name]] for key, name in LAST.items()}
        return dict(last, instance_id=tensors.get('instance_id', rows))


def boxes_of_result(result: Mapping[str, Tensor]) -> InstanceBoxes:
    """Return upstream's boxes, best first, without vz; its `boxes_3d` (n, 10) have z of the centre."""
    boxes = array(result['boxes_3d'])[:, :9].astype(np.float32)
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    scores, labels, ids, class_scores = (
        array(result[name]) for name in ('scores_3d', 'labels_3d', 'instance_ids', 'cls_scores')
    )
    return InstanceBoxes(boxes, scores, labels.astype(np.int64), ids.astype(np.int64), class_scores)


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


DEFAULT_ORDER = ('refine',) * 6


class Sparse4DData(InstanceData):
    compared = PREDICTIONS


class Sparse4DFamily(CameraFamily):
    name = 'sparse4d'
    detectors, heads, head_key = ('Sparse4D',), ('Sparse4DHead',), 'head'
    cameras_at = 'head.deformable_model'
    expects: ClassVar = {  # version 3 alone; without its operator the results differ at image borders
        'use_deformable_func': (True,),
        'head.decouple_attn': (ABSENT, True),
        'head.deformable_model.use_deformable_func': (True,),
        'head.deformable_model.use_camera_embed': (True,),
        'head.deformable_model.residual_mode': ('cat',),
        'head.anchor_encoder.mode': ('cat',),
        'head.anchor_encoder.output_fc': (False,),
        'head.anchor_encoder.vel_dims': (ABSENT, 3),
        'head.refine_layer.refine_yaw': (True,),
        'head.refine_layer.normalize_yaw': (ABSENT, False),
        'head.refine_layer.with_quality_estimation': (True,),
    }
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
        if is_one_of(self.detectors, cfg.model):
            return Claim.DETECTOR
        heads = [part_cfg(cfg.model, key) for key in ('head', 'pts_bbox_head')]
        is_head = any(is_one_of(self.heads, head) for head in heads)
        return Claim.HEAD if is_head else Claim.NO

    def camera_steps(self, cfg: Any) -> list[Mapping[str, Any]]:
        return camera_steps(cfg)

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for instances and layers without a memory."""
        head = self.head_of(cfg)
        bank, order = head.get('instance_bank') or {}, head.get('operation_order') or DEFAULT_ORDER
        num_temp, num_anchor = (int(bank.get(name) or 0) for name in ('num_temp_instances', 'num_anchor'))
        wrong = []
        if not 0 < num_temp < num_anchor:
            wrong.append(f'instance_bank.num_temp_instances={num_temp}, expected 1 to {num_anchor - 1}')
        before, refinements = int(head.get('num_single_frame_decoder', -1)), order.count('refine')
        if order[-1] != 'refine' or not 0 < before < refinements:
            wrong.append(
                f'num_single_frame_decoder={before}, {refinements} refinements, at last {order[-1]!r}; '
                f'expected 1 to {refinements - 1}, and refine as the last operation'
            )
        if wrong:
            raise ConfigError(f'{cfg.filename}: {"; ".join(f"model.head.{one}" for one in wrong)}')

    def build(self, cfg: Any) -> nn.Module:
        bank = self.head_of(cfg).get('instance_bank') or {}
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
