"""The families of PETR and PETRv2: the configs that they claim and refuse, graphs, reference and runtime.

What the attributes and methods of the classes without a docstring are for is documented where they are
defined first: `families/base.py`, `families/sequence.py` and `families/parts/camera_models.py`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, TensorSpec
from mmdeploy_ext.core.config import test_dataset, test_pipeline
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.parts.box_conventions import note_convention, state_convention
from mmdeploy_ext.families.parts.camera_models import OF_CONFIG, CameraModels, QueryBoxes
from mmdeploy_ext.families.parts.proof_samples import changed_drive
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.parts.runtime.rig_frames import moments
from mmdeploy_ext.families.parts.samples import dumped_cameras
from mmdeploy_ext.families.petr.graphs import (
    FEATURES,
    Sizes,
    graphs,
    predictions,
    valid_for,
)
from mmdeploy_ext.families.petr.options import DL4AGX
from mmdeploy_ext.families.petr.reference import PetrReference
from mmdeploy_ext.families.petr.runtime import (
    PORTABLE_FILES,
    PetrOnnx,
    bound_files,
    bound_note,
)
from mmdeploy_ext.families.petr.samples import (
    DUMPED,
    camera_steps,
    check_sweeps,
    driven,
    frame,
    start_gap_s,
)
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame, Stepper
from mmdeploy_ext.synthetic.info_files import generated_dataset
from mmdeploy_ext.weights.checkpoint import Checkpoint

NEEDED = dict(with_position=True, with_multiview=True, normedlinear=False)
"""Setting of both heads -> the only value with which they are exported."""
ABSENT = dict(with_position=True, normedlinear=False, position_level=0)
"""Setting -> the value that a head without it has."""


def models_with(head: str, frames: int, **settings: Any) -> CameraModels:
    """Return the models with a type of head that sees a number of frames.

    `settings` are name -> value, needed besides those of both heads.
    """
    return CameraModels(
        detectors=('Petr3D',),
        heads=(head,),
        needed_settings=NEEDED | settings,
        absent_settings=ABSENT,
        check_further=lambda cfg: check_sweeps(cfg.filename, test_pipeline(cfg), frames),
        camera_steps=lambda cfg: camera_steps(test_pipeline(cfg)),
    )


@dataclasses.dataclass(eq=False, kw_only=True)
class PetrFamily(QueryBoxes, SequenceFamily):
    """`Petr3D` with a head that sees one frame, or the frame before, too; the instances are below.

    Attributes:
        name: name of the family.
        models: its models.
        frames: number of frames that a head sees, 1 or 2.
        unread_fields: fields of a `Frame` that the models do not read.
    """

    name: str
    models: CameraModels
    frames: int
    unread_fields: tuple[str, ...]
    exports = 'Petr3D with PETRHead or PETRv2Head (mmdeploy_ext/families/petr/README.md)'
    similar_names = ('PETR', 'DETR3D')
    used_by: ClassVar[Mapping[str, str]] = {
        '': 'video {config} {checkpoint} --onnx {folder} --out work_dirs/video'
    }
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'pts_bbox_head.forward', 'position_embeding', 'get_bboxes', 'pts_bbox_head.transformer.forward',
        'decode', 'decode_single', 'grid_mask.forward',
    )  # fmt: skip
    samples, memory = 'frames', True
    of_config = OF_CONFIG
    files = PORTABLE_FILES
    measured = ('portable',)
    bars = (
        ('frame, against PyTorch', 'torch', 0.45),
        ('peak memory, against PyTorch', 'memory', 1.3),
    )
    bars_of = 'the portable contract on a CPU'
    ignored_prefixes = ('pts_bbox_head.code_weights',)
    reference = staticmethod(PetrReference)
    moments = staticmethod(moments)
    dumped_frame = staticmethod(functools.partial(dumped_cameras, names=DUMPED))
    graphs = staticmethod(graphs)

    def claims(self, cfg: Any) -> Claim:
        return self.models.claims(cfg)

    def check(self, cfg: Any, options: Options) -> None:
        self.models.check(cfg)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        return frame(data, self.frames)

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        return self.models.preprocess_rule(cfg)

    def build(self, cfg: Any) -> nn.Module:
        model = self.models.build(cfg)
        state_convention(model, cfg)
        model.picture_size = tuple(self.preprocess_rule(cfg).size)  # height and width without padding
        model.start_gap_s = start_gap_s(test_pipeline(cfg))
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_convention(model, checkpoint)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        ours = dict(collect_keys=[]) if 'collect_keys' in test_dataset(cfg) else {}
        return generated_dataset(folder, cfg, dict(ours, type='CustomNuScenesDataset'), views=rule)

    def names_of(self, options: Options) -> tuple[str, ...]:
        return bound_files(self.frames) if options.contract == DL4AGX else self.files

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(
            self.box_facts(model),
            box_convention=model.box_convention,
            start_gap_s=float(model.start_gap_s),
            valid_for=valid_for(self.frames),
        )

    def memory_spec(self, facts: Mapping[str, Any]) -> MemorySpec:
        tensors = {}
        if self.frames > 1:
            exact = ColumnGroup(rtol=0.0, atol=0.0)
            tensors = dict(img_feats=FEATURES, lidar2img=exact, camera_times_s=exact)
        return MemorySpec(tensors=tensors, needed=PREDICTIONS, per_query=PREDICTIONS)

    def reference_of(self, model: nn.Module, options: Options) -> Stepper:
        notes = [bound_note(self.frames)] if options.contract == DL4AGX else []
        return PetrReference(model, notes)

    def runner_output_specs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return predictions(Sizes(model)) if options.contract == DL4AGX else ()

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        # the published model knows no time gap: the proof and the metrics compare like with like
        return PetrOnnx(paths, max_gap_s=None, **engine)

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        # their times change, those of the cameras would stay
        frames = list(changed_drive(dataclasses.replace(sample, camera_times_s=None)))
        yield from frames
        yield from driven(dataclasses.replace(frames[-1], images=sample.images))

    def ignores_places(self, options: Options) -> bool:
        return True  # the motion is composed in float64

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        return dict(backbone=[(model, 'extract_img_feat')])


PETR = PetrFamily(
    name='petr',
    models=models_with('PETRHead', 1),
    frames=1,
    unread_fields=('intrinsics', 'ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token'),
)
PETRV2 = PetrFamily(
    name='petrv2',
    models=models_with('PETRv2Head', 2, with_fpe=True, with_time=True, with_multi=True, position_level=0),
    frames=2,
    unread_fields=('intrinsics',),
)
