"""BEVFusion from pictures and points to boxes: frames, depth maps, sparse backbone, boxes; without PyTorch.

    runtime = BEVFusionOnnx('work_dirs/bevfusion')         # the folder that pytorch2onnx.py wrote
    detections = runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections

Glossary: N cameras, H, W pictures of the network, h, w pictures as taken, P points, V values per point, Q
queries, n boxes.
"""

from __future__ import annotations

import abc
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmdeploy_ext.base.errors import DataError, ModelFileError, ShapeError
from mmdeploy_ext.engines import build_backend, build_exact
from mmdeploy_ext.runtime.bird_eye import circle_nms, rotated_nms
from mmdeploy_ext.runtime.calibration import check_calibration
from mmdeploy_ext.runtime.detections3d import Detections3D, in_lidar_columns, in_range
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.runtime.infos import find_file, past_sweeps
from mmdeploy_ext.runtime.points import check_in_range, check_points, read_points
from mmdeploy_ext.runtime.preprocess.cameras import prepare_views
from mmdeploy_ext.runtime.preprocess.fusion import past_of
from mmdeploy_ext.runtime.sparse.buckets import BEV
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.facts import Count, Facts, Fraction, NotNegative, Positive, Range, optional
from mmdeploy_ext.spec.metadata import Metadata, read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.preparation import FusionRule


# Facts of BEVFusion.


Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Circle(Facts):
    """Suppression of a group of classes by `radius`, a squared distance in m2."""

    classes: tuple[int, ...]
    radius: NotNegative
    most: Count


@dataclasses.dataclass(frozen=True)
class Rotated(Facts):
    """Suppression of a group of classes by `overlap`, a bird's-eye view IoU.

    Attributes:
        classes: ascending.
        most: largest number of results of the group.
        first: number of best boxes that enter; None: all.
        scales: factors of the sizes of each class.
    """

    classes: tuple[int, ...]
    most: Count
    overlap: Fraction
    first: Count | None
    scales: tuple[Positive, ...]


@dataclasses.dataclass(frozen=True)
class Coder(Facts):
    """Settings of the box coder.

    Attributes:
        pc_range: metres.
        voxel_size: metres.
        out_size_factor: voxels per cell.
        post_center_range: closed range of the box's bottom centre, metres; None: no limit.
        score_threshold: exclusive; None and 0: no limit.
    """

    pc_range: tuple[float, ...]
    voxel_size: tuple[Positive, ...]
    out_size_factor: Count
    post_center_range: Range | None
    score_threshold: float | None


@dataclasses.dataclass(frozen=True)
class ViewFacts(Facts):
    image_size: tuple[Count, Count]
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    depths: tuple[float, ...]
    centre: Triple
    step: Triple
    count: tuple[Count, Count, Count]


@dataclasses.dataclass(frozen=True)
class BEVFusionFacts(Facts):
    """Facts of a model of cameras, LiDAR or both.

    Attributes:
        queries: number of boxes before suppression.
        uses_points: whether the cameras take depth maps of the LiDAR.
        nms: suppression per class or per group; None: off.
        view: None for LiDAR alone.
    """

    sensors: tuple[Literal['camera', 'lidar'], ...]
    queries: Count
    uses_points: bool
    nms: Circle | tuple[Circle | Rotated, ...] | None
    coder: Coder
    view: ViewFacts | None = optional()


# ---- boxes: columns, limits of the coder, suppression


def filter_boxes(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, coder: Coder) -> Detections3D:
    """Return the boxes (of (Q, 9), z at the bottom) within the limits of a coder, best first."""
    valid = np.ones(len(scores), bool)
    if coder.post_center_range is not None:
        valid = in_range(boxes, coder.post_center_range)
    if coder.score_threshold:
        valid &= scores > coder.score_threshold
    return Detections3D(boxes.astype(np.float32), scores, labels.astype(np.int64))[valid].best_first()


def suppress(detections: Detections3D, nms: Circle | tuple[Circle | Rotated, ...] | None) -> Detections3D:
    """Remove boxes that are too near to a better box of their group; `detections` are best first."""
    if nms is None:
        return detections
    groups = nms
    if isinstance(nms, Circle):
        groups = [dataclasses.replace(nms, classes=(label,)) for label in nms.classes]
    remains = ~np.isin(detections.labels, [label for group in groups for label in group.classes])
    for group in groups:
        rows = np.flatnonzero(np.isin(detections.labels, group.classes))
        remains[rows[rows_after_nms(detections.boxes[rows], detections.labels[rows], group)]] = True
    return detections[remains]


def rows_after_nms(boxes: np.ndarray, labels: np.ndarray, group: Circle | Rotated) -> np.ndarray:
    """Return the indices of a group's boxes (n, 9), best first, that NMS keeps."""
    if isinstance(group, Circle):
        return circle_nms(boxes[:, :2], group.radius)[: group.most]
    boxes_bev = boxes[: group.first, [0, 1, 3, 4, 6]]
    scales = np.float32(group.scales)[np.searchsorted(group.classes, labels[: group.first])]
    boxes_bev[:, 2:4] *= scales[:, None]
    return rotated_nms(boxes_bev, group.overlap)[: group.most]


# ---- frames: checked, and made of a data set's infos


FAMILY = 'bevfusion_det'
NO_POINTS = np.zeros((0, 5), np.float32)


class FusionRuntime(Runtime):
    """Base class of all runtimes of BEVFusion: data of cameras and LiDAR to boxes."""

    _rig: tuple[bytes, Any] = b'', None

    def of_rig(self, matrices: Arrays, names: Sequence[str], make: Callable[..., Any]) -> Any:
        """Return `make(matrices)`, computed again only if a matrix changed since the last call."""
        key = b''.join(np.ascontiguousarray(matrices[name], np.float32).tobytes() for name in names)
        if self._rig[0] != key:
            self._rig = key, make(matrices)
        return self._rig[1]

    @abc.abstractmethod
    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in one frame with pictures prepared for the network (`frame_of_rig`)."""

    def detect(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Detections3D:
        """Return the boxes of one frame of a data set's infos, best first."""
        return self.step(self.moment(images_bgr, rig, root)).detections

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> FusedFrame:
        return frame_of_rig(images_bgr, rig, self.rule, root)


def frame_of_rig(
    images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: FusionRule, root: str | Path | None = None
) -> FusedFrame:
    """Return one moment of a data set as inputs; without cameras only the points.

    Args:
        images_bgr: N pictures (h, w, 3) uint8 BGR, in the order of the cameras.
        rig: the moment of `runtime.infos.read_frames`: calibration, pose, and paths.
        rule: how pictures and points are prepared.
        root: folder of the data set; None: missing files are searched beside the infos.
    """
    if rule.views is None:
        return FusedFrame(points_of(rig, rule, root), rig.name)
    images = prepare_views(rule.views, images_bgr)
    intrinsics = np.tile(np.eye(4), (len(images), 1, 1))
    intrinsics[:, :3, :3] = rig.intrinsics
    calibration = dict(
        camera_intrinsics=intrinsics,
        camera2lidar=invert_pose(rig.lidar2cam),
        lidar2image=rig.lidar2img,
        img_aug_matrix=rule.img_aug_matrix(),
        lidar_aug_matrix=np.eye(4),
    )
    return FusedFrame(
        points_of(rig, rule, root),
        rig.name,
        images=images,
        calibration={name: matrix.astype(np.float32) for name, matrix in calibration.items()},
        image_files=tuple(str(path or '') for path in rig.pictures),
    )


def points_of(rig: RigFrame, rule: FusionRule, root: str | Path | None = None) -> np.ndarray:
    """Return points (P, V) float32 of a key frame and its past sweeps, in the key frame's LiDAR frame, m."""
    if rule.voxels is None:
        return NO_POINTS
    info, title = rig.info, f'{rig.source}: the info of {rig.name}'
    if 'lidar_path' not in info:
        raise DataError(f'{title} has no lidar_path; expected the path of a sweep')

    def read(name: Any) -> np.ndarray:
        return read_points(find_file(name, rig.source, root, 'sweep'), rule.load_dim)

    points = read(info['lidar_path'])
    if rule.sweeps:
        points = past_of(rule).merge(points, past_sweeps(info, title), rig.timestamp_s, read)
    return np.ascontiguousarray(points[:, list(rule.use_dim)])


def checked_inputs(frame: FusedFrame, rule: FusionRule) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return checked points (P, V) and pictures (N, 3, H, W) of a frame, float32."""
    points = images = None
    if rule.voxels is not None:
        points = check_points(frame.points, int(rule.voxels.in_channels), frame.name)
        check_in_range(points, rule.voxels.point_cloud_range, frame.name)
    if rule.views is not None:
        check_calibration(frame.calibration, rule.views.num_cameras, frame.name)
        images = check_images(frame, rule.views.input_size, rule.views.num_cameras)
    return points, images


def check_images(frame: FusedFrame, size: tuple[int, int], cameras: int = 0) -> np.ndarray:
    """Return pictures (N, 3, H, W) float32 of `size` (H, W); 0 `cameras` is any number.

    Raises ShapeError for missing pictures or another shape.
    """
    images = getattr(frame, 'images', None)
    expected = (cameras or (len(images) if images is not None else 'N'), 3, *size)
    if images is None or images.shape != expected:
        shape = 'there are none' if images is None else f'of shape {images.shape}'
        raise ShapeError(f'{frame.name or "frame"}: camera images have shape {shape}, expected {expected}')
    return np.ascontiguousarray(images, np.float32)


# ---- stream

GRAPHS = ('rig', 'depth', 'lidar', 'frame')
EXACT = ('rig', 'depth')


class BEVFusionOnnx(FusionRuntime):
    """An exported BEVFusion: a `Stepper` of fused frames, without a memory.

    Attributes:
        sessions: file -> session, without `lidar`, a `ScnOnnx`.
        metadata: metadata of the file `frame`.
        seconds: time spent so far by part: `rig`, `depth`, `lidar` (voxels, rulebook and network), `frame`.
    """

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        super().__init__()
        files = self._files(paths)
        self.sessions = {
            name: self.opened(engine, path, options, build_exact if name in EXACT else build_backend)
            for name, path in files.items()
            if name != 'lidar'
        }
        self.metadata = self.sessions['frame'].metadata
        metadata = {name: session.metadata for name, session in self.sessions.items()}
        if 'lidar' in files:
            self.lidar = self.enter_context(ScnOnnx(files['lidar'], engine=engine, **options))
            metadata['lidar'] = Metadata.from_props(self.lidar.props, files['lidar'])
        check_forms(files, metadata, FAMILY)
        self.seconds = dict.fromkeys(files, 0.0)
        exact_outputs = [
            name for file in EXACT if file in metadata for name in metadata[file].spec.output_names
        ]
        self._between = (*exact_outputs, BEV)

    @staticmethod
    def _files(paths: Paths) -> dict[str, Path]:
        files = export_files(paths, GRAPHS[-1:])
        last = next((path for path in files if path.stem == GRAPHS[-1]), None)
        if last is None:
            raise ModelFileError(f'{", ".join(map(str, files))}: got no {GRAPHS[-1]}.onnx of an export')
        metadata = read_metadata(last)
        metadata.require(last, FAMILY, GRAPHS[-1:])
        facts = metadata.postprocess
        needed = dict(rig='camera' in facts.sensors, depth='depth' in metadata.spec.input_names)
        needed |= dict(lidar='lidar' in facts.sensors, frame=True)
        names = [name for name in GRAPHS if needed[name]]
        if isinstance(paths, str | Path) and Path(paths).is_dir():
            files = export_files(paths, names)
        by_name = {path.stem: path for path in files}
        if not by_name.keys() >= set(names) or len(by_name) < len(files):
            needed_files = ', '.join(f'{name}.onnx' for name in names)
            raise ModelFileError(
                f'{", ".join(map(str, files))}: expected {needed_files} of one export, each once'
            )
        return by_name

    def step(self, frame: FusedFrame) -> StepResult:
        tensors = self._tensors_before_frame(frame)
        start = time.perf_counter()
        outputs = self._infer('frame', tensors)
        check_finite(outputs, frame.name or 'frame')
        self.passed('frame', start)
        between = {name: tensors[name] for name in self._between if name in tensors}
        return StepResult({**between, **outputs}, self.boxes_of(outputs))

    def boxes_of(self, outputs: Arrays) -> Detections3D:
        return boxes_of_outputs(self.metadata, outputs)

    def feeds(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        tensors = self._tensors_before_frame(frame)
        return {name: tensors[name] for name in self.metadata.spec.input_names}

    def _tensors_before_frame(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        points, images = checked_inputs(frame, self.rule)
        tensors, start = dict(frame.calibration, img=images), time.perf_counter()
        if points is not None:
            tensors['points'] = points[:, :3]
        if images is not None:
            names = self.sessions['rig'].metadata.spec.input_names
            tensors |= self.of_rig(frame.calibration, names, lambda matrices: self._infer('rig', matrices))
            start = self.passed('rig', start)
        if 'depth' in self.sessions:
            tensors |= self._infer('depth', tensors)
            start = self.passed('depth', start)
        if points is not None:
            tensors[BEV] = self.lidar.step(points=points)
            self.passed('lidar', start)
        return tensors

    def _infer(self, name: str, tensors: Arrays) -> dict[str, np.ndarray]:
        session = self.sessions[name]
        return session.infer({key: tensors[key] for key in session.metadata.spec.input_names})


def detections(outputs: Arrays) -> Detections3D:
    """Return the frame file's boxes, best first, without label -1 (out of range or low score).

    `boxes` are (Q, 9) in columns of mmdet3d 0.x.
    """
    boxes, labels = in_lidar_columns(outputs['boxes']), outputs['labels'].astype(np.int64)
    return Detections3D(boxes, outputs['scores'], labels)[labels >= 0].best_first()


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    return suppress(detections(outputs), metadata.postprocess.nms)


OPENS, QUANTISED = BEVFusionOnnx, 'frame'
