"""PETR and PETRv2: frames, supported configs and models."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import (
    CameraData,
    CameraFamily,
    camera_graphs,
    feature_maps,
    loaded_frame,
    map_shapes,
)
from mm2onnx_driving.common.camera_reference import CameraReference
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS, output_specs
from mm2onnx_driving.petr.runtime import FRAME, MODEL, PORTABLE_FILES, READS, RIG, PetrFacts, camera_times
from mm2onnx_driving.petr.steps import (
    detect,
    embed_counts,
    embed_rays,
    padding_mask,
    query_positions,
    token_corners,
)
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.box_conventions import check_coder, note_convention, state_convention
from mmdeploy_ext.families.common.lidar_parts import Hook, OfModel
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

# The graphs of PETR and PETRv2: pictures to features, calibration to positions, both to objects.
#
# Glossary: N cameras of a frame, F frames (PETR 1, PETRv2 2), H, W network input in pixels, h, w feature
# map, C
# channels, L decoder layers, R queries, K classes. Box codes: `predict` of `steps.py`.


EXACT = ColumnGroup(rtol=0.0, atol=0.0)
FEATURES = ColumnGroup(rtol=0.0, atol=1e-4)
POSITIONS = ColumnGroup(rtol=0.0, atol=5e-3)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3)
BOXES = (
    ColumnGroup('x y', (0, 1), 'm', 0.0, 5e-3),
    ColumnGroup('z, log size', (2, 3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 1e-3),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of PETRv2."""


def frames_of(model: nn.Module) -> int:
    return 2 if hasattr(model.pts_bbox_head, 'fpe') else 1


class ExtractImgFeat(OfModel):
    """Backbone and neck."""

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Return the first feature map (1, N, C, h, w) of pictures (N, 3, H, W)."""
        return (feature_maps(self.model, img)[0].unsqueeze(0),)


class PositionEmbedding(OfModel):
    """Positions of tokens by their rays; `size` is H, W, `map_size` h, w."""

    def __init__(self, model: nn.Module, size: tuple[int, int], map_size: tuple[int, int]) -> None:
        super().__init__(model)
        self.map_size = map_size
        self.register_buffer('corners', token_corners(size, map_size), persistent=False)

    def forward(self, img2lidar: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (1, N, C, h, w) of matrices (1, N, 4, 4), and a copy of the matrices."""
        rays = embed_rays(self.model.pts_bbox_head, img2lidar[0], self.corners, self.map_size)
        return rays.unsqueeze(0), img2lidar + 0.0


class Head(OfModel):
    """The head behind features and positions; sine part and query positions are constants."""

    def __init__(self, model: nn.Module, padding: Tensor) -> None:
        super().__init__(model)
        head = model.pts_bbox_head
        device = head.reference_points.weight.device
        with torch.no_grad():
            constants = dict(sine_part=embed_counts(head, padding), queries=query_positions(head))
        for name, values in constants.items():
            self.register_buffer(name, values.detach().to(device), persistent=False)
        self.register_buffer('padding', padding.to(device) if padding.any() else None, persistent=False)

    def detect(self, features: Tensor, rays: Tensor, seconds: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return logits (L, 1, R, K) and box codes (L, 1, R, 10) of features and rays (1, F N, C, h, w).

        `seconds` (1,) is the mean time since the frame before; PETR: 1.
        """
        constants = self.sine_part, self.queries, self.padding
        return detect(self.model.pts_bbox_head, features[0], rays[0], *constants, seconds)


class PtsHead(Head):
    """The head; logits are NaN if an embedding was made with another calibration."""

    def forward(
        self,
        img_feats: Tensor,
        pos_embed: Tensor,
        embedded_img2lidar: Tensor,
        img2lidar: Tensor,
        *before: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (L, 1, R, K) and box codes (L, 1, R, 10).

        PETRv2: `before` are the four inputs of the frame before, and `mean_time_stamp` (1,), seconds.
        """
        stale, seconds = difference_of(embedded_img2lidar, img2lidar), 1.0
        if before:
            features, positions, embedded, matrices, seconds = before
            img_feats = torch.cat([img_feats, features], 1)
            pos_embed = torch.cat([pos_embed, positions], 1)
            stale = stale + difference_of(embedded, matrices)
        logits, boxes = self.detect(img_feats, pos_embed, seconds)
        return torch.where(stale > 0, torch.full_like(logits, float('nan')), logits), boxes


def difference_of(embedded: Tensor, matrices: Tensor) -> Tensor:
    return (embedded - matrices).abs().max()


class Sizes:
    """Numbers that determine all shapes.

    Attributes:
        levels: (C, h, w) of each feature map; the head takes the first.
        map_size: (h, w) of the first level.
        positions: channels of the embedding.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.pts_bbox_head
        self.cameras, self.height, self.width = model.input_sizes
        self.frames = frames_of(model)
        self.levels = map_shapes(model, self.height, self.width)
        self.map_size = self.levels[0][1:]
        self.positions, self.layers = int(head.embed_dims), len(head.transformer.decoder.layers)
        self.queries, self.classes = int(head.num_query), int(head.num_classes)


def predictions(size: Sizes) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of logits (L, 1, R, K) and box codes (L, 1, R, 10)."""
    return output_specs((size.layers, 1, size.queries), size.classes, (LOGITS,), BOXES)


def embedding_spec(size: Sizes) -> GraphSpec:
    matrices = (1, size.cameras, 4, 4)
    inverse = 'inverses of lidar2img, computed in float64: pixels times depth to the current LiDAR frame'
    axes = (1, size.cameras, size.positions, *size.map_size)
    per_rig = 'position embedding of the tokens; recompute it when img2lidar or the image size changes'
    copied = 'img2lidar that pos_embed was computed from; the head rejects another one'
    return GraphSpec(
        'petr/position_embedding',
        (TensorSpec('img2lidar', 'float32', matrices, inverse, single=True),),
        (
            TensorSpec('pos_embed', 'float32', axes, per_rig, groups=(POSITIONS,)),
            TensorSpec('embedded_img2lidar', 'float32', matrices, copied, groups=(EXACT,), single=True),
        ),
    )


def portable(size: Sizes) -> list[GraphSpec]:
    embedding = embedding_spec(size)
    features = TensorSpec(
        'img_feats', 'float32', (1, size.cameras, *size.levels[0]), 'feature map', groups=(FEATURES,)
    )
    image = (size.cameras, 3, size.height, size.width)
    images = TensorSpec('img', 'float32', image, 'normalised images, padded bottom and right')
    inputs = [features, *embedding.outputs, embedding.inputs[0]]
    if size.frames > 1:
        before = 'of the previous frame; at the first frame of a scene, of the current frame'
        meanings = {tensor.name: f'{tensor.meaning}; {before}' for tensor in inputs}
        meanings['img2lidar'] = 'pixels times depth of the previous frame to the current LiDAR frame'
        inputs += [
            dataclasses.replace(tensor, name=f'prev_{tensor.name}', meaning=meanings[tensor.name])
            for tensor in inputs
        ]
        time = 'time since the previous frame, mean over the cameras; 1.245 at the first frame of a scene'
        inputs.append(TensorSpec('mean_time_stamp', 'float32', (1,), time, 's', single=True))
    return [
        GraphSpec('petr/extract_img_feat', (images,), (features,)),
        embedding,
        GraphSpec('petr/pts_head', tuple(inputs), predictions(size)),
    ]


def padding_of(model: nn.Module, size: Sizes) -> Tensor:
    pictures = [model.picture_size] * size.cameras * size.frames
    return padding_mask(pictures, (size.height, size.width), size.map_size)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    size = Sizes(model)
    modules = (
        ExtractImgFeat(model),
        PositionEmbedding(model, (size.height, size.width), size.map_size),
        PtsHead(model, padding_of(model, size)),
    )
    return camera_graphs(model, options, list(zip(PORTABLE_FILES, modules, portable(size), strict=True)))


# PETR and PETRv2 in PyTorch as a stepper.


GAPS_S, LAG_S = (0.5, 0.05, 1.7, 6.0, 0.5), 0.08
"""Seconds between frames with irregular gaps, and between the pictures of a frame."""
OLDER_FRAME = (
    'the previous frame is the last one that ran; the published evaluation uses sweeps from about 1.25 s '
    'earlier, whose features are not stored'
)


def picture_times(frame: Frame) -> np.ndarray:
    """Return the absolute times (N,) of the pictures; no code of the runtime."""
    camera_times(frame)
    times = frame.timestamp_s if frame.camera_times_s is None else frame.camera_times_s
    return np.zeros(len(frame.images)) + np.asarray(times, np.float64)


class PetrReference(CameraReference):
    """The detector's own test path; PETRv2 gets the pictures of the last frame behind the present ones.

    As in upstream's converter, the last calibration is moved into the present LiDAR frame in float64.
    """

    outputs = (*PREDICTIONS, 'img_feats', 'pos_embed')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.frames = frames_of(model)
        self.reads = READS[self.frames]
        self._seen: dict[tuple[float, str], Frame] = {}
        super().__init__(model, [*([OLDER_FRAME] if self.frames > 1 else []), *notes])

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, GAPS_S, LAG_S)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(backbone=[(self.model, 'extract_img_feat')])

    def forget(self) -> None:
        self._before: Frame | None = None
        self._maps = np.zeros(0, np.float32)

    def memory(self) -> dict[str, np.ndarray]:
        if self.frames == 1:
            return {}
        lidar2img = np.array(self._before.lidar2img, np.float64)
        return dict(img_feats=self._maps, lidar2img=lidar2img, camera_times_s=picture_times(self._before))

    def remember(self, state: StreamState) -> None:
        if self.frames == 1:
            return
        if (moment := (state.timestamp_s, state.scene_token)) not in self._seen:
            raise DataError(
                'PETRv2 in PyTorch needs the images of the previous frame, which a state does not have: '
                'run that frame first'
            )
        self._before, self._maps = self._seen[moment], state.tensors['img_feats']

    def step(self, frame: Frame) -> StepResult:
        result = super().step(frame)
        self._before, self._maps = copy.deepcopy(frame), result.outputs['img_feats']
        self._seen[frame.timestamp_s, frame.scene_token] = self._before
        self._seen = dict([*self._seen.items()][-2:])
        return result

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        count = len(frame.images)
        return {
            self.head.position_encoder: lambda inputs, outputs: dict(pos_embed=outputs[None, :count]),
            self.head: lambda inputs, outputs: dict(
                {name: outputs[name] for name in PREDICTIONS}, img_feats=inputs[0][0][:, :count]
            ),
        }

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        images, meta = [frame.images], self.meta_of(frame)
        if self.frames > 1:
            before = frame if is_first else self._before
            ages = frame.timestamp_s - picture_times(frame)
            earlier = ages + self.model.start_gap_s
            if not is_first:
                earlier = frame.timestamp_s - picture_times(before)
            images.append(before.images)
            motion = np.linalg.inv(before.ego_pose) @ frame.ego_pose
            meta['lidar2img'] += list(before.lidar2img @ motion)
            meta['timestamp'] = [*ages, *earlier]
            meta['pad_shape'] *= 2
        meta['img_shape'] = [(*self.model.picture_size, 3)] * len(meta['lidar2img'])
        pictures = self.tensor(np.concatenate(images))
        return dict(return_loss=False, rescale=True, img=[pictures[None]], img_metas=[[meta]])


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

SWEEPS, RESIZE = 'LoadMultiViewImageFromMultiSweepsFiles', 'ResizeCropFlipImage'
"""Test pipeline steps that load the frame before, and that resize."""
SWEEP_S, SWEEP_RANGE = 0.083, (3, 27)


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


class PetrFamily(CameraFamily):
    """`Petr3D` with a head that sees one frame, or two (`frames`)."""

    name, frames = 'petr', 1
    detectors, heads = ('Petr3D',), ('PETRHead',)
    expects: ClassVar = {
        'pts_bbox_head.with_position': (ABSENT, True),
        'pts_bbox_head.with_multiview': (True,),
        'pts_bbox_head.normedlinear': (ABSENT, False),
    }
    data = PetrData(1, ('intrinsics', 'ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token'))
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'pts_bbox_head.forward', 'position_embeding', 'get_bboxes', 'pts_bbox_head.transformer.forward',
        'decode', 'decode_single', 'grid_mask.forward',
    )  # fmt: skip
    files = PORTABLE_FILES
    ignores_places = True  # the motion is composed in float64
    ignored_prefixes = ('pts_bbox_head.code_weights',)
    reference, graphs = staticmethod(PetrReference), staticmethod(graphs)

    def camera_steps(self, cfg: Any) -> list[Mapping[str, Any]]:
        return [
            dict(step, type='ResizeCropFlipRotImage') if step['type'] == RESIZE else step
            for step in test_pipeline(cfg)
            if step['type'] != SWEEPS
        ]

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for another number of frames before than the head's."""
        for step in test_pipeline(cfg):
            if step['type'] == SWEEPS and step.get('sweeps_num') != self.frames - 1:
                raise ConfigError(
                    f'{cfg.filename}: {SWEEPS} of the test pipeline has sweeps_num='
                    f'{step.get("sweeps_num")}, expected {self.frames - 1}, the number of previous frames '
                    'that the head uses'
                )

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


class PetrV2Family(PetrFamily):
    name, frames = 'petrv2', 2
    heads = ('PETRv2Head',)
    expects = PetrFamily.expects | {
        'pts_bbox_head.with_fpe': (True,),
        'pts_bbox_head.with_time': (True,),
        'pts_bbox_head.with_multi': (True,),
        'pts_bbox_head.position_level': (ABSENT, 0),
    }
    data = PetrData(2, ('intrinsics',))
