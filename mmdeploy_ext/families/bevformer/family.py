"""The family of BEVFormer: the configs that it claims and refuses, its graph, reference and runtime.

What the attributes and methods of the class without a docstring are for is documented where they are
defined first: `families/base.py`, `families/sequence.py` and `families/parts/camera_models.py`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmdeploy_ext.consumers.autoware.bevformer_rules import GRAPH as NODE_GRAPH
from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, TensorSpec
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.source_code import users_method
from mmdeploy_ext.families.bevformer import autoware
from mmdeploy_ext.families.bevformer.graphs import BEV, FORM, graphs, spec
from mmdeploy_ext.families.bevformer.options import PORTABLE, RECORDED
from mmdeploy_ext.families.bevformer.reference import BevFormerReference
from mmdeploy_ext.families.bevformer.runtime import BevFormerOnnx, frame_with_record
from mmdeploy_ext.families.bevformer.samples import can_bus_entry, driven, dumped_frame, frame
from mmdeploy_ext.families.parts.box_conventions import note_convention, state_convention, stated
from mmdeploy_ext.families.parts.camera_models import OF_CONFIG, CameraModels, QueryBoxes
from mmdeploy_ext.families.parts.detector_parts import part_cfg
from mmdeploy_ext.families.parts.options import AUTOWARE
from mmdeploy_ext.families.parts.proof_samples import changed_drive
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.parts.runtime.rig_frames import moments
from mmdeploy_ext.families.sequence import FRAME_BARS, SequenceFamily
from mmdeploy_ext.models.bevformer.head import BEVFormerHead
from mmdeploy_ext.models.bevformer.transformer import BEVFormerLayer
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame, Stepper
from mmdeploy_ext.synthetic.info_files import generated_dataset
from mmdeploy_ext.weights.checkpoint import Checkpoint


def memory_spec(facts: Mapping[str, Any]) -> MemorySpec:
    """Return what a proof knows about the memory of files: the view, and where the car was.

    It is the same for every file: `facts`, the metadata's entry `postprocess`, are not read.
    """
    tensors = dict(
        bev_embed=BEV,
        position=ColumnGroup(unit='m', rtol=0.0, atol=1e-6),
        heading=ColumnGroup(unit='degree', rtol=0.0, atol=1e-6),
    )
    return MemorySpec(
        tensors=tensors, outputs=dict(bev_embed='bev_embed'), needed=PREDICTIONS, per_query=PREDICTIONS
    )


LOOPED = (
    ('', ('forward', 'get_bev_features')),
    ('encoder', ('forward', 'get_reference_points', 'point_sampling')),
    ('encoder.layers.?', ('forward',)),
    ('decoder', ('forward',)),
)
"""Parts of the transformer that our head goes through by itself, and their methods, which nothing calls."""


def check_parts(filename: str, model: nn.Module) -> None:
    """Refuse (ConfigError) methods of the user's in this package's head that neither graph nor PyTorch calls.

    `filename` is that of the config, for the message.
    """
    if not isinstance(model.pts_bbox_head, BEVFormerHead):
        return
    for path, part in model.pts_bbox_head.transformer.named_modules():
        for place, methods in LOOPED:
            for found in (users_method(type(part), method) for method in methods if fnmatch(path, place)):
                if found:
                    raise ConfigError(
                        f'{filename}: {found} is never called: BEVFormerHead of mm2onnx goes through the '
                        f'layers of encoder and decoder by itself; use a head of your own code, by '
                        f'custom_imports'
                    )


def check_encoder(filename: str, transformer: Mapping[str, Any]) -> None:
    """Refuse (ConfigError) options of the encoder's layers that this package's layer does not read alike.

    These are another activation than ReLU, settings of the feed-forward network, and normalisation first.
    `filename` is that of the config, for messages, `transformer` the entry of its head.
    """
    layers = transformer['encoder']['transformerlayers']
    for layer in layers if isinstance(layers, list | tuple) else [layers]:
        differs = dict(
            act_cfg=(layer.get('act_cfg') or dict(type='ReLU'))['type'] != 'ReLU',  # upstream ignores it
            ffn_cfgs=bool(layer.get('ffn_cfgs')),
            operation_order=layer['operation_order'][0] == 'norm',
        )
        if wrong := [f'{key}={layer[key]}' for key, is_other in differs.items() if is_other]:
            raise ConfigError(
                f'{filename}: model.pts_bbox_head.transformer.encoder.transformerlayers: {", ".join(wrong)}; '
                f'expected those of the published configs, or layers of your own code, by custom_imports'
            )


def check_memory(cfg: Any) -> None:
    """Refuse (ConfigError) a config by which the model forgets the last view; `build` checks the default."""
    if not cfg.model.get('video_test_mode', True):
        raise ConfigError(
            f'{cfg.filename}: model.video_test_mode=False forgets the last view before every frame; '
            f'expected True'
        )


SETTINGS = dict(as_two_stage=False, with_box_refine=True)
"""Setting of the head -> the value that is exported, and that one without the setting counts as having.

Building this package's head refuses it without `with_box_refine`, whose default there is False."""
MODELS = CameraModels(
    detectors=('BEVFormer', 'BEVFormer_fp16'),
    heads=('BEVFormerHead',),
    needed_settings=SETTINGS,
    absent_settings=SETTINGS,
    check_further=check_memory,
    camera_settings=lambda cfg: part_cfg(cfg.model, 'pts_bbox_head').get('transformer') or {},
)


class BevFormerFamily(QueryBoxes, SequenceFamily):
    """`BEVFormer` with `BEVFormerHead`."""

    name = 'bevformer'
    exports = 'BEVFormer with BEVFormerHead (mmdeploy_ext/families/bevformer/README.md)'
    similar_names = ('BEVFormer', 'BEVDet', 'DETR3D')
    used_by: ClassVar[Mapping[str, str]] = {
        NODE_GRAPH: 'check {folder}',
        '': 'video {config} {checkpoint} --onnx {file} --out work_dirs/video',
    }
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'pts_bbox_head.forward', 'get_bboxes', 'decode', 'decode_single', '*transformer.forward',
        'get_bev_features', '*transformer.encoder.forward', 'get_reference_points', 'point_sampling',
        '*transformer.decoder.forward', '*encoder.layers.?.forward', '*attentions.?.forward',
        '*deformable_attention.forward', 'grid_mask.forward',
    )  # fmt: skip
    samples, memory = 'frames', True
    of_config = OF_CONFIG
    files = (FORM,)
    measured = ('portable',)
    bars = FRAME_BARS
    bars_of = 'the portable contract of tiny at 480x800 on a CPU'
    unread_fields = ('intrinsics', 'ego_pose', 'timestamp_s')
    ignored_prefixes = ('pts_bbox_head.code_weights',)
    claims, preprocess_rule = MODELS.claims, MODELS.preprocess_rule
    reference, memory_spec = staticmethod(BevFormerReference), staticmethod(memory_spec)
    frame, moments = staticmethod(frame), staticmethod(functools.partial(moments, frame_of=frame_with_record))
    dumped_frame = staticmethod(dumped_frame)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        return autoware.graphs(model, options) if options.contract == AUTOWARE else graphs(model, options)

    def names_of(self, options: Options) -> tuple[str, ...]:
        return (NODE_GRAPH,) if options.contract == AUTOWARE else self.files

    def companions(self, model: nn.Module, options: Options) -> Mapping[str, str]:
        return autoware.companions(model) if options.contract == AUTOWARE else {}

    def companion_differences(self, folder: Path, cfg: Any) -> list[str]:
        return list(autoware.parameter_differences(folder, cfg))

    def reference_of(self, model: nn.Module, options: Options) -> Stepper:
        return BevFormerReference(model, as_node=options.contract == AUTOWARE)

    def check(self, cfg: Any, options: Options) -> None:
        MODELS.check(cfg)
        if options.contract == AUTOWARE:
            autoware.check(cfg.filename, self.preprocess_rule(cfg))

    def build(self, cfg: Any) -> nn.Module:
        model = MODELS.build(cfg)
        state_convention(model, cfg)
        if not getattr(model, 'video_test_mode', True):  # the default of BEVFormer's class
            raise ConfigError(
                f'{cfg.filename}: model.video_test_mode is not stated, and False by default: the model then '
                f'forgets the last view before every frame; expected True'
            )
        check_parts(cfg.filename, model)
        if isinstance(model.pts_bbox_head.transformer.encoder.layers[0], BEVFormerLayer):
            check_encoder(cfg.filename, MODELS.head_of(cfg)['transformer'])
        model.rule = self.preprocess_rule(cfg)  # for `autoware.companions`
        model.can_bus_orientation = stated(cfg, 'can_bus_orientation', RECORDED) or RECORDED[0]
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_convention(model, checkpoint)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        return generated_dataset(
            folder, cfg, dict(type='BevNuScenesDataset'), views=rule, entries=can_bus_entry
        )

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        head, transformer = model.pts_bbox_head, model.pts_bbox_head.transformer
        low, high = head.pc_range[:2], head.pc_range[3:5]
        return dict(
            self.box_facts(model),
            bev_h=int(head.bev_h),
            bev_w=int(head.bev_w),
            extent=[float(end) - float(start) for start, end in zip(low, high, strict=True)],
            rotate_center=[float(value) for value in transformer.rotate_center],
            rotate_prev_bev=bool(transformer.rotate_prev_bev),
            use_shift=bool(transformer.use_shift),
            box_convention=model.box_convention,
            can_bus_orientation=model.can_bus_orientation,
        )

    def runner_output_specs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        if options.contract == PORTABLE:
            return ()
        return tuple(spec(model, options).tensor(name) for name in PREDICTIONS)

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        return BevFormerOnnx(paths, **engine)

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        frames = list(changed_drive(sample))
        yield from frames
        yield from driven(dataclasses.replace(frames[-1], images=sample.images))

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(model, 'forward_test')])
