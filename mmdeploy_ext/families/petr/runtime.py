"""PETR and PETRv2 as a stream: images, calibration, pose and times in, boxes out.

PETRv2 keeps the features of the last frame, and where its cameras were. Nothing that depends on a frame is
used for another one: positions are computed again whenever their matrices change.

Needs numpy, OpenCV and ONNX Runtime, no PyTorch.

Glossary: N cameras, H, W network input in pixels, C channels, h, w feature map, L decoder layers, R queries,
K classes.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, ModelFileError, ShapeError
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS, above, decode
from mmdeploy_ext.families.parts.runtime.rig_frames import CameraRuntime, scene_of
from mmdeploy_ext.families.petr.options import PORTABLE
from mmdeploy_ext.runtime.exported import check_same_export, export_files, names_in
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.geometry import relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths

FAMILIES = dict(petr=1, petrv2=2)
"""Name of a family in the metadata -> number of frames that its head sees."""
EMBEDDING = 'position_embedding'
PORTABLE_FILES = ('extract_img_feat', EMBEDDING, 'pts_head')
"""Names of the files of the portable contract, in the order in which a frame goes through them."""
BOUND_NAMES = {name: f'out.{name}' for name in PREDICTIONS}
"""Output of the portable head -> its name in DL4AGX."""
BOUND_POSITIONS, BOUND_TIME = 'img_metas.0[coords_position_embeding]', 'img_metas.0[mean_time_stamp]'
"""Inputs of DL4AGX's head that its caller computes."""
MAX_GAP_S = 27 * 0.083
"""Seconds: PETRv2 was trained with a frame before that is 3 to 27 sweeps of 0.083 s old (`sweep_range`)."""


def bound_files(frames: int) -> tuple[str, str, str]:
    """Return the names of the files of DL4AGX's contract, for PETR (`frames` 1) or PETRv2 (2)."""
    return f'PETRv{frames}.extract_feat', f'PETRv{frames}.pts_bbox_head.forward', EMBEDDING


def bound_note(frames: int) -> str:
    """Return the note on what the caller of DL4AGX's graphs has to compute, and when.

    `frames` is that of `bound_files`.
    """
    note = (
        'contract dl4agx: the caller computes the position embedding (position_embedding.onnx; its weights '
        'are in neither of the two graphs) '
    )
    if frames == 1:
        return f'{note}again whenever calibration, resize or crop change'
    return (
        f'{note}for EVERY frame: the matrices of the frame before change with the motion of the car, and '
        'mean_time_stamp with the gap; values that are loaded once (v2_coords_pe.bin, '
        'v2_mean_time_stamp.bin) are those of another frame, and velocities are wrong by the ratio of the '
        'gaps'
    )


def inverse_of(lidar2img: np.ndarray) -> np.ndarray:
    """Return the inverses (1, N, 4, 4) float32 of matrices (N, 4, 4), computed in float64."""
    return np.linalg.inv(np.asarray(lidar2img, np.float64)).astype(np.float32)[None]


def camera_times(frame: Frame) -> np.ndarray:
    """Return the absolute times (N,) float64, seconds, of a frame's pictures.

    Without `camera_times_s` all are the time of the frame. DataError: one is not finite, or there are not N
    of them.
    """
    count = len(frame.images)
    if frame.camera_times_s is None:
        return np.full(count, frame_checks.check_time(frame.timestamp_s))
    times = np.array(frame.camera_times_s, np.float64)  # a copy, which the next frame needs
    if times.shape != (count,) or not np.isfinite(times).all():
        raise DataError(f'camera_times_s: got {times.tolist()}, expected {count} finite times in s')
    return times


def memory_of(frame: Frame, scene_token: str, maps: np.ndarray | None) -> StreamState:
    """Return what is kept of a frame.

    Of PETRv2 that is `img_feats` (1, N, C, h, w), its first feature map, `lidar2img` (N, 4, 4) and
    `camera_times_s` (N,), absolute seconds. Of PETR, whose `maps` are None, it is pose and time alone, for
    which a unit matrix and 0 stand if the frame has none. `scene_token` is that of the scene, also if the
    frame has none. DataError: of PETRv2, see `camera_times`.
    """
    pose = np.eye(4) if frame.ego_pose is None else np.array(frame.ego_pose, np.float64)
    tensors = {}
    if maps is not None:
        lidar2img = np.array(frame.lidar2img, np.float64)
        tensors = dict(img_feats=maps, lidar2img=lidar2img, camera_times_s=camera_times(frame))
    return StreamState(tensors, pose, float(frame.timestamp_s or 0.0), scene_token)


def mean_gap_s(time_s: float, times_s: np.ndarray, earlier_s: np.ndarray) -> np.float32:
    """Return the mean time in s between two pictures of the same camera, as PETRv2 rounds it.

    Args:
        time_s: absolute time of the present frame, seconds.
        times_s: (N,) absolute times of its pictures.
        earlier_s: (N,) absolute times of the pictures of the frame before.

    Raises:
        DataError: it is not positive, so that a displacement gives no velocity.
    """
    ages, earlier_ages = np.float32(time_s - times_s), np.float32(time_s - earlier_s)
    gap = (earlier_ages - ages).mean(dtype=np.float32)
    if not gap > 0:
        raise DataError(
            f'camera_times_s: the pictures are {gap:.6f} s newer than those of the frame before, expected '
            f'more than 0; skip the frame, or call reset() where a new drive begins'
        )
    return gap


class PetrOnnx(CameraRuntime):
    """An exported PETR or PETRv2: a `Stepper` of frames. For `detect` see `CameraRuntime`.

    Attributes:
        frames: 1 for PETR, 2 for PETRv2, which needs poses and times.
        contract: 'portable' or 'dl4agx', the option `--contract` of the export.
        backbone, embedding, head: the engines with the three files.
        seconds: spent so far in each of them, by these names.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        max_gap_s: float | None = MAX_GAP_S,
        engine: str = 'OnnxRuntimeBackend',
        **options: Any,
    ) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its three files.
            max_gap_s: of PETRv2, a longer gap between two frames begins a scene; None never does, as in the
                published model, so proofs pass it.
            engine: registered name of the backend.
            options: options of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another family, or not of the same export.
            EngineError: the engine is not here.
            ConfigError: no such engine, or one without these options.
        """
        super().__init__()
        names = names_in(paths, PORTABLE_FILES, *map(bound_files, FAMILIES.values()))
        backends = self.opened_by_form(export_files(paths, names), engine, options, list(FAMILIES))
        check_same_export({backend.path: backend.metadata for backend in backends.values()})
        self.frames = FAMILIES[next(iter(backends.values())).metadata.family]
        bound = bound_files(self.frames)
        if set(backends) == set(PORTABLE_FILES):
            self.backbone, self.embedding, self.head = (backends[name] for name in PORTABLE_FILES)
        elif set(backends) == set(bound):
            self.backbone, self.head, self.embedding = (backends[name] for name in bound)
        else:
            raise ModelFileError(
                f'{", ".join(backend.path for backend in backends.values())}: got the graphs '
                f'{", ".join(backends)}; expected {", ".join(PORTABLE_FILES)} or {", ".join(bound)}'
            )
        self.metadata = self.head.metadata
        self.contract = self.metadata.options['contract']
        self.notes = () if self.contract == PORTABLE else (bound_note(self.frames),)
        self.image_shape = tuple(self.backbone.spec.tensor('img').axes)
        self.seconds = dict(backbone=0.0, embedding=0.0, head=0.0)
        self.max_gap_s = max_gap_s if self.frames > 1 else None
        self._embedded: tuple[bytes, dict[str, np.ndarray]] = (b'', {})
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: the next one begins a scene."""
        self._last: StreamState | None = None
        self._further_maps: tuple[np.ndarray, ...] = ()

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame, see `Frame`.

        Outputs are `all_cls_scores` and `all_bbox_preds` of the head, and `img_feats` and `pos_embed` of the
        frame.

        Raises:
            ShapeError: images of another shape.
            DataError: an invalid calibration; for PETRv2 also an invalid pose or time, or pictures that are
                not later than those of the last frame.
            InferenceError: the engine failed, which leaves the last frame as it was, or the network gave NaN
                or infinity, after which it is forgotten.
        """
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        img2lidar = inverse_of(frame_checks.check_matrices('lidar2img', frame.lidar2img, self.num_cameras))
        if self.frames > 1:
            frame_checks.check_pose(frame.ego_pose)
            frame_checks.check_time(frame.timestamp_s)
        is_first = self.begins_scene(self._last, frame.timestamp_s, frame.scene_token)
        start = time.perf_counter()
        maps = self._features(images, is_first)
        start = self.passed('backbone', start)
        present = dict(img_feats=maps[0], **self._embed(img2lidar), img2lidar=img2lidar)
        scene = scene_of(frame.scene_token, self._last)
        memory = memory_of(frame, scene, maps[0] if self.frames > 1 else None)
        parts, gap = [present], None
        if self.frames > 1 and is_first:
            times = memory.tensors['camera_times_s']
            gap = mean_gap_s(frame.timestamp_s, times, times - self.metadata.postprocess['start_gap_s'])
            parts.append(present)
        elif self.frames > 1:
            last = self._last.tensors
            gap = mean_gap_s(frame.timestamp_s, memory.tensors['camera_times_s'], last['camera_times_s'])
            matrices = self._in_present_frame(self._last, frame)
            embedded = self._run_embedding(matrices)
            parts.append(dict(img_feats=last['img_feats'], **embedded, img2lidar=matrices))
        start = self.passed('embedding', start)
        outputs = self._detect(parts, gap)
        self.passed('head', start)
        self.check_outputs(outputs, frame)
        self._last, self._further_maps, self.was_reset = memory, maps[1:], is_first
        outputs |= dict(img_feats=maps[0], pos_embed=present['pos_embed'])
        return StepResult(outputs, self.boxes_of(outputs), is_first)

    def _features(self, images: np.ndarray, is_first: bool) -> tuple[np.ndarray, ...]:
        """Return the feature maps (1, N, C, h, w) of the images, of each level that the files give."""
        feeds = dict(img=images)
        is_alone = is_first or self.frames == 1
        last_maps = () if is_alone else (self._last.tensors['img_feats'], *self._further_maps)
        for level, name in enumerate(self.backbone.spec.input_names[1:]):  # prev.0, prev.1 of DL4AGX
            # no layer of the head reads further levels, which a state does not have
            axes = self.backbone.spec.tensor(name).axes
            feeds[name] = last_maps[level] if level < len(last_maps) else np.zeros(axes, np.float32)
        outputs = self.backbone.infer(feeds)
        maps = (outputs[name] for name in self.backbone.spec.output_names)
        if self.contract == PORTABLE:
            return tuple(maps)
        count = self.num_cameras  # of PETR the cameras are on the first axis, of PETRv2 behind the batch
        rows = (level.reshape(1, -1, *level.shape[-3:])[:, :count] for level in maps)
        return tuple(map(np.ascontiguousarray, rows))

    def _embed(self, img2lidar: np.ndarray) -> dict[str, np.ndarray]:
        """Return the embedding of the present cameras, which is kept until their matrices change."""
        key = img2lidar.tobytes()
        if key != self._embedded[0]:
            self._embedded = key, self._run_embedding(img2lidar)
        return self._embedded[1]

    def _run_embedding(self, img2lidar: np.ndarray) -> dict[str, np.ndarray]:
        """Return `pos_embed` and `embedded_img2lidar` of matrices (1, N, 4, 4)."""
        return dict(self.embedding.infer(dict(img2lidar=img2lidar)))

    def _in_present_frame(self, last: StreamState, frame: Frame) -> np.ndarray:
        """Return the matrices (1, N, 4, 4) from the pixels of the last frame to the present LiDAR frame."""
        motion = relative_motion(last.ego_pose, frame.ego_pose)
        return (motion @ np.linalg.inv(last.tensors['lidar2img'])).astype(np.float32)[None]

    def _detect(self, parts: list[dict[str, np.ndarray]], gap: np.float32 | None) -> dict[str, np.ndarray]:
        """Return the head's outputs by their portable names.

        `parts` are the inputs of the present frame, then for PETRv2 those of the frame before, by the names
        of the present ones; `gap` is the mean time between them, None for PETR.
        """
        if self.contract == PORTABLE:
            feeds = dict(parts[0])
            for part in parts[1:]:
                feeds |= {f'prev_{name}': values for name, values in part.items()}
            if gap is not None:
                feeds['mean_time_stamp'] = np.array([gap], np.float32)
            return dict(self.head.infer(feeds))
        feeds = {
            'mlvl_feats.0': np.concatenate([part['img_feats'] for part in parts], 1),
            BOUND_POSITIONS: np.concatenate([part['pos_embed'] for part in parts], 1),
        }
        if gap is not None:
            feeds[BOUND_TIME] = np.array([gap], np.float32)
        outputs = self.head.infer(feeds)
        return {name: outputs[bound] for name, bound in BOUND_NAMES.items()}

    @property
    def state(self) -> StreamState | None:
        """A copy of `memory_of` the last frame, None before the first one and after `reset`.

        ShapeError: of PETRv2, a memory that is assigned is that of another model; PETR takes any.
        """
        return copy.deepcopy(self._last)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is not None and self.frames > 1:
            backbone = self.backbone.spec
            maps = backbone.outputs[0] if self.contract == PORTABLE else backbone.inputs[1]  # prev.0
            shapes = dict(
                img_feats=tuple(maps.axes),
                lidar2img=(self.num_cameras, 4, 4),
                camera_times_s=(self.num_cameras,),
            )
            got = {tensor: np.shape(array) for tensor, array in state.tensors.items()}
            if got != shapes:
                raise ShapeError(f'state: got {got}, expected {shapes}; it is the memory of another model')
        self.reset()
        self._last = copy.deepcopy(state)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return the boxes of a frame, best first, for a program that runs the files by itself.

    They are in its LiDAR frame: the best `max_num` pairs of query and class, of which `post_center_range` (of
    centres) and a `score_threshold` of `metadata` may leave some out; there is no NMS.

    `metadata` and `outputs`, `all_cls_scores` (L, 1, R, K) logits and `all_bbox_preds` (L, 1, R, 10), are
    those of the head's file; of the layers the last one counts. For a file of DL4AGX's contract the outputs
    have to be named like that, see `BOUND_NAMES`.
    """
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess, above)


OPENS = PetrOnnx
"""The class that opens an export."""
