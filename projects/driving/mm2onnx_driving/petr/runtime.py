"""PETR and PETRv2 as a stream: images, calibration, pose and times in, boxes out.

Glossary: N cameras, C channels, h, w feature map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS, QueryBoxFacts, above, decode
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.runtime.streams import StreamRuntime
from mmdeploy_ext.spec.facts import Positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.spec.metadata import Metadata

    Arrays = Mapping[str, np.ndarray]


# ---- facts that the files keep


FRAME, RIG, MODEL = 'frame', 'rig', 'model'
"""Lifetime of a value: a frame, until calibration or image size change, for ever."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PetrFacts(QueryBoxFacts):
    """Facts of a PETR or PETRv2.

    Attributes:
        start_gap_s: time gap at the first frame.
        valid_for: input of a graph, or constant -> its lifetime.
    """

    start_gap_s: Positive
    valid_for: Mapping[str, Literal['frame', 'rig', 'model']]


# ---- stream

FRAMES = dict(petr=1, petrv2=2)
READS = {1: ('lidar2img',), 2: ('lidar2img', 'ego_pose', 'timestamp_s')}
"""Number of frames -> fields that the models read (two: optional `camera_times_s`)."""
BACKBONE, EMBEDDING, HEAD = PORTABLE_FILES = ('extract_img_feat', 'position_embedding', 'pts_head')
MAX_GAP_S = 27 * 0.083
"""Seconds: PETRv2's training has 3 to 27 sweeps of 0.083 s (`sweep_range`)."""


def inverse_of(lidar2img: np.ndarray) -> np.ndarray:
    """Return inverses (1, N, 4, 4) float32 of matrices (N, 4, 4), computed in float64."""
    return np.linalg.inv(np.asarray(lidar2img, np.float64)).astype(np.float32)[None]


def camera_times(frame: Frame) -> np.ndarray:
    """Return the absolute times (N,) float64 of a frame's pictures, s."""
    count = len(frame.images)
    if frame.camera_times_s is None:
        return np.full(count, frame_checks.check_time(frame.timestamp_s))
    times = np.array(frame.camera_times_s, np.float64)
    if times.shape != (count,) or not np.isfinite(times).all():
        raise DataError(f'camera_times_s: got {times.tolist()}, expected {count} finite times in s')
    return times


def mean_gap_s(time_s: float, times_s: np.ndarray, earlier_s: np.ndarray) -> np.float32:
    """Return the mean time between two pictures of a camera, s, with PETRv2's rounding.

    `times_s` and `earlier_s` are absolute times (N,) of the pictures of both frames.
    """
    ages, earlier_ages = np.float32(time_s - times_s), np.float32(time_s - earlier_s)
    gap = (earlier_ages - ages).mean(dtype=np.float32)
    if not gap > 0:
        raise DataError(
            f"camera_times_s: the images are {gap:.6f} s newer than the previous frame's, expected more "
            'than 0; skip the frame, or call reset() when a new drive starts'
        )
    return gap


class PetrOnnx(StreamRuntime):
    families, files = tuple(FRAMES), PORTABLE_FILES
    parts = ('backbone', 'embedding', 'head')
    reads, gap_s = READS[2], MAX_GAP_S

    def __init__(self, paths: Paths, **options: Any) -> None:
        super().__init__(paths, **options)
        self.frames = FRAMES[self.metadata.family]
        self.reads = READS[self.frames]
        if self.frames == 1:
            self.max_gap_s = None

    def checked(self, frame: Frame) -> Frame:
        frame = super().checked(frame)
        return dataclasses.replace(frame, camera_times_s=camera_times(frame)) if self.frames > 1 else frame

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        gap = self.gap(frame, memory) if self.frames > 1 else None
        features, img2lidar = self.features(frame, memory), inverse_of(frame.lidar2img)
        embedded = self.run_for_rig(EMBEDDING, dict(img2lidar=img2lidar))
        parts = [dict(embedded, img_feats=features, img2lidar=img2lidar)]
        if self.frames > 1:
            parts.append(parts[0] if memory is None else self.part_before(frame, memory))
        return dict(self.head_outputs(parts, gap), img_feats=features, pos_embed=embedded['pos_embed'])

    def gap(self, frame: Frame, memory: StreamState | None) -> np.float32:
        """Return the mean time since the frame before, s, or the default."""
        times = frame.camera_times_s
        earlier = times - self.metadata.postprocess.start_gap_s
        if memory is not None:
            earlier = memory.tensors['camera_times_s']
        return mean_gap_s(frame.timestamp_s, times, earlier)

    def features(self, frame: Frame, memory: StreamState | None) -> np.ndarray:
        """Return the first feature map (1, N, C, h, w)."""
        return self.graphs[BACKBONE].run(dict(img=frame.images))['img_feats']

    def part_before(self, frame: Frame, memory: StreamState) -> dict[str, np.ndarray]:
        """Return the head's inputs about the frame before."""
        motion = relative_motion(memory.ego_pose, frame.ego_pose)
        matrices = (motion @ np.linalg.inv(memory.tensors['lidar2img'])).astype(np.float32)[None]
        embedded = self.graphs[EMBEDDING].run(dict(img2lidar=matrices))
        return dict(embedded, img_feats=memory.tensors['img_feats'], img2lidar=matrices)

    def head_outputs(self, parts: Sequence[Arrays], gap: np.float32 | None) -> dict[str, np.ndarray]:
        feeds = dict(parts[0])
        for part in parts[1:]:
            feeds |= {f'prev_{name}': values for name, values in part.items()}
        if gap is not None:
            feeds['mean_time_stamp'] = np.array([gap], np.float32)
        return self.graphs[HEAD].run(feeds)

    def next_memory(self, frame: Frame, memory: StreamState | None, outputs: Arrays) -> dict[str, np.ndarray]:
        if self.frames == 1:
            return {}
        fields = dict(lidar2img=frame.lidar2img, camera_times_s=frame.camera_times_s)
        return dict(fields, img_feats=outputs['img_feats'])

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.frames == 1:
            return {}
        features = self.graphs[self.files[-1]].spec.inputs[0].axes
        cameras = self.num_cameras
        return dict(
            img_feats=(1, cameras, *features[2:]), lidar2img=(cameras, 4, 4), camera_times_s=(cameras,)
        )


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess, above)


OPENS = PetrOnnx


# DL4AGX's graphs of PETR and PETRv2 as a stream, with the caller's computations.
#
# Glossary: N cameras, C channels, h, w feature map.


BOUND_NAMES = {name: f'out.{name}' for name in PREDICTIONS}
"""Output of the portable head -> its name in DL4AGX."""
BOUND_POSITIONS, BOUND_TIME = 'img_metas.0[coords_position_embeding]', 'img_metas.0[mean_time_stamp]'
"""Inputs of DL4AGX's head that its caller computes."""


def bound_files(frames: int) -> tuple[str, str, str]:
    """Return the file names for PETR (`frames` 1) or PETRv2 (2)."""
    return f'PETRv{frames}.extract_feat', f'PETRv{frames}.pts_bbox_head.forward', EMBEDDING


def bound_note(frames: int) -> str:
    note = 'contract dl4agx: run position_embedding.onnx, whose weights are not in the two graphs, '
    if frames == 1:
        return f'{note}whenever calibration, resize or crop changes'
    return (
        f'{note}for EVERY frame: the matrices of the previous frame change with the motion of the car, '
        'and mean_time_stamp with the time gap. Values that are loaded once (v2_coords_pe.bin, '
        'v2_mean_time_stamp.bin) belong to another frame, and velocities are wrong by the ratio of the '
        'gaps'
    )


class PetrBound(PetrOnnx):
    def __init__(self, paths: Paths, frames: int = 1, **options: Any) -> None:
        features, head, positions = bound_files(frames)
        # the order in which a frame goes through them; results are the head's
        self.files = features, positions, head
        super().__init__(paths, **options)
        self.further_maps: tuple[np.ndarray, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return (bound_note(self.frames),)

    def features(self, frame: Frame, memory: StreamState | None) -> np.ndarray:
        graph, last_maps = self.graphs[self.files[0]], ()
        if memory is not None and self.frames > 1:
            last_maps = memory.tensors['img_feats'], *self.further_maps
        feeds = dict(img=frame.images)
        for level, name in enumerate(graph.spec.input_names[1:]):  # prev.0, prev.1
            # no layer of the head reads further levels, which a state does not have
            axes = graph.spec.tensor(name).axes
            feeds[name] = last_maps[level] if level < len(last_maps) else np.zeros(axes, np.float32)
        outputs, count = graph.run(feeds), self.num_cameras
        # of PETR the cameras are on the first axis, of PETRv2 behind the batch
        maps = [
            np.ascontiguousarray(level.reshape(1, -1, *level.shape[-3:])[:, :count])
            for level in (outputs[name] for name in graph.spec.output_names)
        ]
        self.further_maps = tuple(maps[1:])
        return maps[0]

    def head_outputs(self, parts: Sequence[Arrays], gap: np.float32 | None) -> dict[str, np.ndarray]:
        feeds = {
            'mlvl_feats.0': np.concatenate([part['img_feats'] for part in parts], 1),
            BOUND_POSITIONS: np.concatenate([part['pos_embed'] for part in parts], 1),
        }
        if gap is not None:
            feeds[BOUND_TIME] = np.array([gap], np.float32)
        outputs = self.graphs[self.files[-1]].run(feeds)
        return {name: outputs[bound] for name, bound in BOUND_NAMES.items()}


petrv2_bound = functools.partial(PetrBound, frames=2)
