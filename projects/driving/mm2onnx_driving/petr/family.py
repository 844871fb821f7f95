"""PETR and PETRv2: frames, supported configs and models."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mm2onnx_driving.common.camera_data import CameraData
from mm2onnx_driving.common.camera_models import CameraFamily, CameraModels
from mm2onnx_driving.common.camera_samples import loaded_frame
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.petr.graphs import EXACT, FEATURES, graphs
from mm2onnx_driving.petr.reference import PetrReference
from mm2onnx_driving.petr.runtime import FRAME, MODEL, PORTABLE_FILES, RIG, PetrFacts
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.common.box_conventions import check_coder, note_convention, state_convention
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

# ---- frames


OF_CAMERAS = 'images', 'lidar2img', 'intrinsics', 'image_files'


class PetrData(CameraData):
    def __init__(self, frames: int, unread_fields: tuple[str, ...]) -> None:
        self.frames, self.unread_fields = frames, unread_fields

    def frame(self, data: Mapping[str, Any]) -> Frame:
        sample = loaded_frame(data)
        if sample.ego_pose is not None:  # a data set of streams
            return sample
        cameras, rest = divmod(len(sample.images), self.frames)
        if rest:
            raise DataError(
                f'img: got {len(sample.images)} images, expected all cameras for {self.frames} frames'
            )
        present = {name: getattr(sample, name)[:cameras] for name in OF_CAMERAS}
        return dataclasses.replace(sample, **present)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        ours = dict(collect_keys=[]) if 'collect_keys' in test_dataset(cfg) else {}
        return generated_dataset(folder, cfg, dict(ours, type='CustomNuScenesDataset'), views=rule)


# ---- families

NEEDED = dict(with_position=True, with_multiview=True, normedlinear=False)
ABSENT = dict(with_position=True, normedlinear=False, position_level=0)
SWEEPS, RESIZE = 'LoadMultiViewImageFromMultiSweepsFiles', 'ResizeCropFlipImage'
"""Test pipeline steps that load the frame before, and that resize."""
SWEEP_S, SWEEP_RANGE = 0.083, (3, 27)


def camera_steps(cfg: Any) -> list[Mapping[str, Any]]:
    return [
        dict(step, type='ResizeCropFlipRotImage') if step['type'] == RESIZE else step
        for step in test_pipeline(cfg)
        if step['type'] != SWEEPS
    ]


def check_sweeps(cfg: Any, frames: int) -> None:
    for step in test_pipeline(cfg):
        if step['type'] == SWEEPS and step.get('sweeps_num') != frames - 1:
            raise ConfigError(
                f'{cfg.filename}: {SWEEPS} of the test pipeline has sweeps_num={step.get("sweeps_num")}, '
                f'expected {frames - 1}, the number of previous frames that the head uses'
            )


def start_gap_s(cfg: Any) -> float:
    loader = next((step for step in test_pipeline(cfg) if step['type'] == SWEEPS), {})
    first, last = loader.get('sweep_range', SWEEP_RANGE)
    return (first + last) / 2.0 * SWEEP_S


def valid_for(frames: int) -> dict[str, str]:
    per_frame, per_rig = ['img', 'img_feats'], ['img2lidar', 'pos_embed', 'embedded_img2lidar']
    if frames > 1:
        per_frame += [*(f'prev_{name}' for name in ('img_feats', *per_rig)), 'mean_time_stamp']
    names = {FRAME: per_frame, RIG: per_rig, MODEL: ['sine_part', 'queries']}
    return {name: duration for duration, listed in names.items() for name in listed}


@dataclasses.dataclass(eq=False, kw_only=True)
class PetrFamily(CameraFamily, SequenceFamily):
    """`Petr3D` with a head that sees one frame, or two (`frames`)."""

    name: str
    models: CameraModels
    frames: int
    data: PetrData
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'pts_bbox_head.forward', 'position_embeding', 'get_bboxes', 'pts_bbox_head.transformer.forward',
        'decode', 'decode_single', 'grid_mask.forward',
    )  # fmt: skip
    files = PORTABLE_FILES
    ignores_places = True  # the motion is composed in float64
    ignored_prefixes = ('pts_bbox_head.code_weights',)
    reference, graphs = staticmethod(PetrReference), staticmethod(graphs)

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        check_coder(model, cfg)
        state_convention(model, cfg, CONVENTIONS[0])
        model.picture_size = tuple(self.preprocess_rule(cfg).size)  # height and width without padding
        model.start_gap_s = start_gap_s(cfg)
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_convention(model, checkpoint)

    def facts(self, model: nn.Module) -> PetrFacts:
        settings = dict(start_gap_s=float(model.start_gap_s), valid_for=valid_for(self.frames))
        return PetrFacts(**self.box_facts(model), **settings)

    def memory_spec(self, facts: PetrFacts) -> MemorySpec:
        tensors = {}
        if self.frames > 1:
            tensors = dict(img_feats=FEATURES, lidar2img=EXACT, camera_times_s=EXACT)
        return MemorySpec(tensors=tensors, needed=PREDICTIONS, per_query=PREDICTIONS)


def models_with(head: str, frames: int, **settings: Any) -> CameraModels:
    return CameraModels(
        detectors=('Petr3D',),
        heads=(head,),
        needed_settings=NEEDED | settings,
        absent_settings=ABSENT,
        check_further=lambda cfg: check_sweeps(cfg, frames),
        camera_steps=camera_steps,
    )


PETR = PetrFamily(
    name='petr',
    models=models_with('PETRHead', 1),
    frames=1,
    data=PetrData(1, ('intrinsics', 'ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token')),
)
PETRV2 = PetrFamily(
    name='petrv2',
    models=models_with('PETRv2Head', 2, with_fpe=True, with_time=True, with_multi=True, position_level=0),
    frames=2,
    data=PetrData(2, ('intrinsics',)),
)
