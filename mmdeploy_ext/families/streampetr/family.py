"""The family of StreamPETR: the configs that it claims and refuses, its graphs, reference and runtime.

What the attributes and methods of `StreamPetrFamily` without a docstring are for is documented where they are
defined first: `families/base.py`, `families/sequence.py` and `families/parts/camera_models.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmdeploy_ext.consumers.autoware.streampetr_rules import FILES as NODE_FILES
from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, TensorSpec
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.camera_models import OF_CONFIG, CameraModels, QueryBoxes
from mmdeploy_ext.families.parts.detector_parts import part_cfg
from mmdeploy_ext.families.parts.options import AUTOWARE
from mmdeploy_ext.families.parts.proof_samples import after_a_turn, changed_drive
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.parts.runtime.rig_frames import moments
from mmdeploy_ext.families.parts.stream_samples import stream_frame
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.families.streampetr import autoware
from mmdeploy_ext.families.streampetr.graphs import graphs
from mmdeploy_ext.families.streampetr.live import HEAD_METHODS, check_parts, is_ours
from mmdeploy_ext.families.streampetr.reference import StreamPetrReference
from mmdeploy_ext.families.streampetr.runtime.model import StreamPetrOnnx
from mmdeploy_ext.families.streampetr.samples import (
    DUMP_NAMES,
    DUMP_SUFFIXES,
    dump_tensors,
    dumped_frame,
)
from mmdeploy_ext.families.streampetr.spec import sizes
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame, Stepper
from mmdeploy_ext.synthetic.info_files import generated_dataset

TOLERANCES = {
    'embedding': ColumnGroup(rtol=0.0, atol=5e-4),
    'reference_point': ColumnGroup(unit='m', rtol=0.0, atol=2e-3),
    'timestamp': ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    'egopose': ColumnGroup(rtol=0.0, atol=2e-4),
    'velo': ColumnGroup(unit='m/s', rtol=0.0, atol=2e-4),
}
"""Absolute tolerances of a float32 memory. Source: "Suggested tolerances" of the reference data of StreamPETR
(measured between correct implementations); times 1e-5 s instead of 1e-6 s, because ages are float32 here and
a step of float32 at 10 s is 1e-6 s."""


def memory_spec(facts: Mapping[str, Any]) -> MemorySpec:
    """Return what a proof knows about the memory of files.

    `facts` is the entry `postprocess` of their metadata; without `topk_proposals` near ties are not judged.
    """
    topk = int(facts.get('topk_proposals') or 0)
    return MemorySpec(
        tensors=TOLERANCES,
        outputs={name: f'post_memory_{name}' for name in TOLERANCES},
        needed=PREDICTIONS,
        per_query=(*PREDICTIONS, 'outs_dec'),
        scores='all_cls_scores' if topk else '',
        places=(('reference_point', 'all_bbox_preds', (0, 1, 2)), ('velo', 'all_bbox_preds', (8, 9))),
        topk=topk,
        propagated=int(facts.get('num_propagated', topk)),
    )


def check_test_path(cfg: Any) -> None:
    """Refuse (ConfigError) tokens that the 2D head chooses, and a decoder without a norm behind it."""
    if not cfg.model.get('aux_2d_only', True):
        raise ConfigError(
            f'{cfg.filename}: model.aux_2d_only=False chooses tokens by the 2D head at test time, which '
            f'is not exported; expected True'
        )
    head = part_cfg(cfg.model, 'pts_bbox_head')
    decoder = (head.get('transformer') or {}).get('decoder') or {}
    if decoder.get('post_norm_cfg', dict(type='LN')) is None:
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.transformer.decoder.post_norm_cfg is None: the '
            f"branches were trained on normalised outputs, another layer's output would reach them"
        )


MODELS = CameraModels(
    detectors=('Petr3D', 'Petr3DPTH', 'Petr3DONNX'),
    heads=('StreamPETRHead', 'StreamPETRHeadPTH', 'StreamPETRHeadONNX'),
    check_further=check_test_path,
)


class StreamPetrFamily(QueryBoxes, SequenceFamily):
    """`Petr3D` with `StreamPETRHead`; in the deployment fork their names end in PTH and ONNX."""

    name = 'streampetr'
    exports = 'Petr3D with StreamPETRHead (mmdeploy_ext/families/streampetr/README.md)'
    similar_names = ('PETR', 'DETR3D', 'BEVFormer', 'FCOSMono3D', 'Sparse4D')
    used_by: ClassVar[Mapping[str, str]] = {
        NODE_FILES[-1]: 'check {folder}',
        '': 'video {config} {checkpoint} --onnx {file} --out work_dirs/video',
    }
    untraced = (
        *HEAD_METHODS[1:], 'pts_bbox_head.forward', '.forward', 'forward_test', 'simple_test',
        'simple_test_pts', 'prepare_location', 'forward_roi_head', 'decode', 'decode_single',
        'grid_mask.forward',
    )  # fmt: skip
    samples, memory = 'frames', True
    of_config = OF_CONFIG
    files = ('extract_img_feat', 'position_embedding', 'pts_head_memory')
    measured = ('deploy', 'fork')
    ignored_prefixes = ('img_roi_head.', 'pts_bbox_head.code_weights', 'pts_bbox_head.match_costs')
    dump_suffixes = DUMP_SUFFIXES
    dump_names = DUMP_NAMES
    bars = (
        ('frame, against PyTorch', 'torch', 0.36),
        ('frame, against the fork contract', 'fork', 0.95),
        ('ms of position embedding in the median frame', 'embedding', 0.0),
        ('bytes fed besides the images', 'fed_bytes', 64_000),
    )
    bars_of = 'the deploy contract of R50 at 704x256 on a CPU, where the convolutions are most of the time'
    claims, preprocess_rule = MODELS.claims, MODELS.preprocess_rule
    reference, memory_spec = staticmethod(StreamPetrReference), staticmethod(memory_spec)
    frame, moments = staticmethod(stream_frame), staticmethod(moments)
    dump_tensors, dumped_frame = staticmethod(dump_tensors), staticmethod(dumped_frame)

    def check(self, cfg: Any, options: Options) -> None:
        MODELS.check(cfg)
        stride, (height, width) = int(cfg.model.get('stride', 16)), self.preprocess_rule(cfg).input_size
        if height % stride or width % stride:
            raise ConfigError(
                f'{cfg.filename}: the test pipeline gives images of {height}x{width}, expected multiples of '
                f'the stride {stride}; set size_divisor of PadMultiViewImage'
            )

    def build(self, cfg: Any) -> nn.Module:
        model = MODELS.build(cfg)
        check_parts(cfg.filename, model)
        rule = self.preprocess_rule(cfg)
        model.image_norm = rule.mean, rule.std, rule.to_rgb  # for `autoware.NodeImages`
        return model

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        default = dict(type='CustomNuScenesDataset', collect_keys=[])  # these are collected to train a model
        return generated_dataset(folder, cfg, default, views=rule)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        return autoware.graphs(model, options) if options.contract == AUTOWARE else graphs(model, options)

    def names_of(self, options: Options) -> tuple[str, ...]:
        return NODE_FILES if options.contract == AUTOWARE else self.files

    def companions(self, model: nn.Module, options: Options) -> Mapping[str, str]:
        if options.contract != AUTOWARE:
            return {}
        return autoware.companions(model, sizes(model, *model.input_sizes, layers='last'))

    def companion_differences(self, folder: Path, cfg: Any) -> list[str]:
        limits = MODELS.head_of(cfg)['bbox_coder']['post_center_range']
        return list(autoware.manifest_differences(folder, limits))

    def runner_output_specs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        if options.contract != AUTOWARE:
            return ()
        return autoware.between(sizes(model, *model.input_sizes, layers='last'), options)

    def default_output(self, stem: str, options: Options) -> str:
        return f'{stem}_fork.onnx' if self.one_file(options) else stem

    def one_file(self, options: Options) -> bool:
        return options.contract == 'fork'

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        head = model.pts_bbox_head
        return dict(
            self.box_facts(model),
            memory_len=int(head.memory_len),
            topk_proposals=int(head.topk_proposals),
            num_propagated=int(head.num_propagated),
        )

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        # the published model knows no time gap: the proof and the metrics compare like with like
        return StreamPetrOnnx(paths, max_gap_s=None, **engine)

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        frames = list(changed_drive(sample))
        yield from frames
        yield after_a_turn(dataclasses.replace(frames[-1], images=sample.images))

    def ignores_places(self, options: Options) -> bool:
        return options.contract == 'deploy'  # its memory is in the last LiDAR frame

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        head = model.pts_bbox_head
        embedding = 'embed_positions' if is_ours(head) else 'position_embeding'
        return dict(backbone=[(model, 'extract_img_feat')], embedding=[(head, embedding)])
