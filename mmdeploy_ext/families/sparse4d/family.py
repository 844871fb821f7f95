"""The family of Sparse4D: the configs that it claims and refuses, its graphs, reference and runtime.

What the attributes and methods of `Sparse4DFamily` without a docstring are for is documented where they are
defined first: `families/base.py`, `families/sequence.py` and `families/parts/camera_models.py`.

The model keeps instances, boxes with features and confidences, from frame to frame. An anchor is the box of
an instance in 11 columns; `runtime/bank.py` describes it, and what happens after a gap of more than
`max_time_interval` seconds. The published model reads no scene token; its `REPAIRS` have one that does.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup
from mmdeploy_ext.core.config import replaced_entry, test_dataset, test_pipeline
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.parts.camera_models import OF_CONFIG, CameraModels, is_one_of
from mmdeploy_ext.families.parts.detector_parts import part_cfg
from mmdeploy_ext.families.parts.info_files import write_infos
from mmdeploy_ext.families.parts.proof_samples import changed_drive
from mmdeploy_ext.families.parts.runtime.rig_frames import moments
from mmdeploy_ext.families.parts.samples import dumped_cameras
from mmdeploy_ext.families.sequence import FRAME_BARS, SequenceFamily
from mmdeploy_ext.families.sparse4d.graphs import FEATURES, graphs, map_sizes
from mmdeploy_ext.families.sparse4d.options import DEPLOY
from mmdeploy_ext.families.sparse4d.reference import Sparse4DReference
from mmdeploy_ext.families.sparse4d.runtime.bank import COLUMNS
from mmdeploy_ext.families.sparse4d.runtime.model import (
    CONSTANTS,
    DEPLOY_FILES,
    PORTABLE,
    PREDICTIONS,
    Sparse4DOnnx,
)
from mmdeploy_ext.families.sparse4d.samples import (
    DUMPED,
    camera_steps,
    driven,
    frame,
    result,
)
from mmdeploy_ext.families.sparse4d.seeded import for_width, sparse4d_weights
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame, Stepper

SETTINGS = {
    'use_deformable_func': (True, False),
    'head.deformable_model.use_deformable_func': (True, False),
    'head.deformable_model.use_camera_embed': (True, False),
    'head.deformable_model.residual_mode': ('cat', 'add'),
    'head.anchor_encoder.mode': ('cat', 'add'),
    'head.anchor_encoder.output_fc': (False, True),
    'head.anchor_encoder.vel_dims': (3, 3),
    'head.refine_layer.refine_yaw': (True, False),
    'head.refine_layer.normalize_yaw': (False, False),
    'head.refine_layer.with_quality_estimation': (True, False),
}
"""Setting of a config's model -> the only value that is exported, and the value if the config has none."""
DEFAULT_ORDER = ('refine',) * 6
"""Refinements of a head without `operation_order`."""


def memory_spec(facts: Mapping[str, Any]) -> MemorySpec:
    """Return the description of the memory, the kept instances, by which a proof compares it.

    Features have the tolerance that they have as an output; anchors may differ by 5e-3 in every column
    (metres, logarithms of sizes, sine and cosine, m/s), confidences by 2e-4, the next track id by nothing.
    `facts` are those of the file, of which none is needed.
    """
    tensors = dict(
        cached_feature=FEATURES,
        cached_anchor=ColumnGroup(rtol=0.0, atol=5e-3),
        confidence=ColumnGroup(rtol=0.0, atol=2e-4),
        prev_id=ColumnGroup(rtol=0.0, atol=0.0),
    )
    return MemorySpec(
        tensors=tensors,
        needed=PREDICTIONS,
        per_query=PREDICTIONS,
        places=(('cached_anchor', 'pred_anchor', tuple(range(COLUMNS))),),
        confidence='confidence',
        first_scores='first_scores',
        ids=('instance_id', 'instance_id', 'prev_id'),
    )


def check_version(cfg: Any) -> None:
    """Refuse (ConfigError) models of other versions than the third, by their settings."""
    wrong = []
    for path, (needed, absent) in SETTINGS.items():
        *parts, name = path.split('.')
        section = functools.reduce(lambda outer, part: outer.get(part) or {}, parts, cfg.model)
        if (value := section.get(name, absent)) != needed:
            wrong.append(f'{path}={value!r}, expected {needed!r}')
    head = part_cfg(cfg.model, 'head')
    bank, order = head.get('instance_bank') or {}, head.get('operation_order') or DEFAULT_ORDER
    num_temp, num_anchor = (int(bank.get(name) or 0) for name in ('num_temp_instances', 'num_anchor'))
    if not 0 < num_temp < num_anchor:
        wrong.append(f'head.instance_bank.num_temp_instances={num_temp}, expected 1 to {num_anchor - 1}')
    before, refinements = int(head.get('num_single_frame_decoder', -1)), order.count('refine')
    if order[-1] != 'refine' or not 0 < before < refinements:
        wrong.append(
            f'head.num_single_frame_decoder={before}, {refinements} refinements, at last {order[-1]!r}; '
            f'expected 1 to {refinements - 1} of them, and one at last'
        )
    if wrong:
        raise ConfigError(
            f'{cfg.filename}: model: {"; ".join(wrong)}: Sparse4D v3 alone is exported; without its '
            f'operator the model is another function at the border of pictures'
        )


MODELS = CameraModels(
    detectors=('Sparse4D',),
    heads=('Sparse4DHead',),
    head_key='head',
    needed_settings=dict(decouple_attn=True),
    absent_settings=dict(decouple_attn=True),
    check_further=check_version,
    camera_settings=lambda cfg: part_cfg(cfg.model, 'head').get('deformable_model') or {},
    camera_steps=lambda cfg: camera_steps(test_pipeline(cfg), cfg),
)


class Sparse4DFamily(SequenceFamily):
    """`Sparse4D` with `Sparse4DHead`, version 3."""

    name = 'sparse4d'
    exports = 'Sparse4D with Sparse4DHead (mmdeploy_ext/families/sparse4d/README.md)'
    similar_names = ('Sparse4D', 'SparseDrive')
    used_by: ClassVar[Mapping[str, str]] = {
        '': 'video {config} {checkpoint} --onnx {file} --out work_dirs/video'
    }
    untraced = (
        '.extract_feat', '.forward', 'forward_test', 'simple_test', 'head.forward', 'graph_model',
        'post_process', 'decode', 'decode_box', 'head.instance_bank.get', 'head.instance_bank.update',
        'cache', 'head.instance_bank.reset', 'get_instance_id', 'update_instance_id', '_get_weights',
        'project_points',
        'head.anchor_encoder.forward', 'DeformableFeatureAggregation.forward',
        'SparseBox3DRefinementModule.forward', 'MultiheadAttention.forward', 'anchor_projection',
        '*kps_generator.forward', 'grid_mask.forward',
    )  # fmt: skip
    samples, memory = 'frames', True
    of_config = OF_CONFIG
    files = (PORTABLE,)
    compared = PREDICTIONS
    measured = ('portable',)
    bars = FRAME_BARS
    bars_of = 'the portable contract of R50 at 256x704 on a CPU'
    unread_fields = ('intrinsics', 'scene_token')
    ignored_prefixes = ('depth_branch.', 'head.instance_bank.anchor_handler.')
    reference, memory_spec = staticmethod(Sparse4DReference), staticmethod(memory_spec)
    frame, moments, result = staticmethod(frame), staticmethod(moments), staticmethod(result)
    preprocess_rule = MODELS.preprocess_rule
    dumped_frame = staticmethod(functools.partial(dumped_cameras, names=DUMPED))
    graphs = staticmethod(graphs)

    def claims(self, cfg: Any) -> Claim:
        if is_one_of(MODELS.detectors, cfg.model):
            return Claim.DETECTOR
        heads = [part_cfg(cfg.model, key) for key in ('head', 'pts_bbox_head')]
        is_head = any(is_one_of(MODELS.heads, head) for head in heads)
        return Claim.HEAD if is_head else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        MODELS.check(cfg)

    def build(self, cfg: Any) -> nn.Module:
        bank = MODELS.head_of(cfg).get('instance_bank') or {}
        anchor = bank.get('anchor')
        if isinstance(anchor, str) and not Path(anchor).is_file():
            # every checkpoint has the anchors, which the file only initialises
            zeros = np.zeros((int(bank['num_anchor']), COLUMNS)).tolist()
            with replaced_entry(bank, 'anchor', zeros):
                return MODELS.build(cfg)
        return MODELS.build(cfg)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.head.layers[-1].cls_layers[-1].out_features)

    def seeded(self, cfg: Any, seed: int) -> nn.Module:
        model = self.build(cfg)
        weights = sparse4d_weights(model.state_dict(), f'{seed}:' if seed else '')
        model.load_state_dict(for_width(weights, model.input_sizes[-1]))
        return model

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        infos = write_infos(folder, test_pipeline(cfg), views=rule)
        return dict(test_dataset(cfg), ann_file=str(infos), data_root=f'{folder}/')

    def names_of(self, options: Options) -> tuple[str, ...]:
        return DEPLOY_FILES if options.contract == DEPLOY else self.files

    def companions(self, model: nn.Module, options: Options) -> Mapping[str, str]:
        if options.contract != DEPLOY:
            return {}
        bank, (sizes, starts) = model.head.instance_bank, map_sizes(model, *model.input_sizes)
        # the names and shapes that the node of this contract reads; sizes are height, width of each map
        values = dict(
            instance_feature=bank.instance_feature,
            anchor=bank.anchor,
            spatial_shapes=sizes,
            level_start_index=starts,
        )
        rows = (f'"{name}": {json.dumps(value.detach().cpu().tolist())}' for name, value in values.items())
        return {CONSTANTS: '{' + ',\n'.join(rows) + '}\n'}

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        bank, coder = model.head.instance_bank, model.head.decoder
        return dict(
            max_num=int(coder.num_output),
            score_threshold=coder.score_threshold,
            num_classes=self.num_classes(model),
            num_instances=int(bank.num_anchor),
            num_temp=int(bank.num_temp_instances),
            confidence_decay=float(bank.confidence_decay),
            default_time_interval=float(bank.default_time_interval),
            max_time_interval=float(bank.max_time_interval),
        )

    def reference_of(self, model: nn.Module, options: Options) -> Stepper:
        return Sparse4DReference(model, options.contract == DEPLOY)

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        return Sparse4DOnnx(paths, **engine)

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        frames = list(changed_drive(sample))
        yield from frames
        yield from driven(dataclasses.replace(frames[-1], images=sample.images))

    def ignores_places(self, options: Options) -> bool:
        return True  # the bank composes poses in float64

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(model, 'extract_feat'), (model.head, 'forward')])
