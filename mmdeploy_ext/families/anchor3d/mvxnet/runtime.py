"""MVX-Net from a picture and points to boxes: features of voxels, sparse backbone, dense head.

    runtime = MvxNetOnnx('work_dirs/mvxnet')     # the folder that pytorch2onnx.py wrote
    for rig in read_frames('kitti_infos_val.pkl', runtime.rule.views, 'data/kitti'):
        boxes = runtime.detect(rig.read_pictures(), rig, 'data/kitti')

Glossary: P points, D values of a point, N voxels, H, W picture of the network, h, w original picture.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.families.common.runtime.anchors3d import decode
from mmdeploy_ext.runtime.exported import check_forms
from mmdeploy_ext.runtime.frames import FusedFrame, check_matrix
from mmdeploy_ext.runtime.infos import RigFrame, find_file
from mmdeploy_ext.runtime.lidar import DYNAMIC_INPUTS, GRAPHS, LidarOnnx
from mmdeploy_ext.runtime.points import check_in_range, check_points, read_points
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.runtime.preprocess.points import assigned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.preparation import FusionRule

FAMILY = 'mvxnet'
PICTURE, CAMERA = 'img', ('lidar2image', 'img_aug_matrix')
FEATURES = 'voxel_features'


class MvxNetOnnx(LidarOnnx):
    """An exported MVX-Net: a `Stepper` of frames of one picture and one sweep."""

    family = FAMILY
    graphs = ('voxels', *GRAPHS)
    decode = staticmethod(decode)

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        super().__init__(paths, engine=engine, **options)
        self.voxels = self.opened(engine, self.files['voxels'], options)
        check_forms(self.files, dict(voxels=self.voxels.metadata, head=self.metadata), self.family)

    @property
    def width(self) -> int:
        return int(self.rule.voxels.in_channels)

    def detect(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Detections3D:
        return self.step(self.moment(images_bgr, rig, root)).detections

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> FusedFrame:
        return frame_of_rig(images_bgr, rig, self.rule, root)

    def before_head(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        points = check_points(frame.points, self.width, frame.name)
        check_in_range(points, self.rule.voxels.point_cloud_range, frame.name)
        check_camera(frame)
        matrices = (np.asarray(frame.calibration[key], np.float32)[0] for key in CAMERA)
        start = time.perf_counter()
        points, rows, coors = assigned(points, self.rule.voxels)
        rows, coors = sort_voxels(rows, coors)
        feeds = dict(zip((PICTURE, *CAMERA), (frame.images, *matrices), strict=True))
        feeds |= dict(zip(DYNAMIC_INPUTS, (points, rows, coors), strict=True))
        features = self.voxels.infer(feeds)[FEATURES]
        start = self.passed('voxels', start)
        bev = self.backbone.step(voxels=(features, coors))
        self.passed('backbone', start)
        return {FEATURES: features, 'bev': bev}


def sort_voxels(rows: np.ndarray, coors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's row (P,) of the voxels, and the voxels' coors (N, 4) in mmdet3d's order."""
    order = np.lexsort(coors.T[::-1])
    places = np.empty(len(order), rows.dtype)
    places[order] = np.arange(len(order), dtype=rows.dtype)
    return places[rows], np.ascontiguousarray(coors[order])


def check_camera(frame: FusedFrame) -> None:
    name = frame.name or 'frame'
    shape = np.shape(frame.images)
    if len(shape) != 4 or shape[:2] != (1, 3):
        raise ShapeError(f'{name}: the image has shape {shape}, expected (1, 3, H, W)')
    calibration = {key: np.asarray(matrix, np.float32) for key, matrix in frame.calibration.items()}
    for key in CAMERA:
        check_matrix(calibration, key, (1, 4, 4), name)
    _, picture = CAMERA
    if calibration[picture][0, [0, 0, 1, 1], [1, 2, 0, 2]].any():
        raise DataError(
            f'{name}: img_aug_matrix rotates the image; only scaling, shifting and flipping are supported'
        )
    lidar_aug = calibration.get('lidar_aug_matrix')
    if lidar_aug is not None and not np.array_equal(lidar_aug, np.eye(4)):
        raise DataError(f'{name}: lidar_aug_matrix moves the points; expected the identity matrix')


def camera_matrices(lidar2image: np.ndarray, picture2input: np.ndarray) -> dict[str, np.ndarray]:
    """Return the float32 matrices (1, 4, 4) of a `FusedFrame` of one camera; `lidar_aug_matrix` is unit.

    `lidar2image` (4, 4) goes to the original picture, `picture2input` (3, 3) from there to the network's.
    """
    img_aug = np.eye(4)
    img_aug[:2, :2], img_aug[:2, 3] = picture2input[:2, :2], picture2input[:2, 2]
    matrices = dict(lidar2image=lidar2image[None], img_aug_matrix=img_aug[None], lidar_aug_matrix=np.eye(4))
    return {name: np.asarray(matrix, np.float32) for name, matrix in matrices.items()}


def frame_of_rig(
    images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: FusionRule, root: str | Path | None = None
) -> FusedFrame:
    """Return one frame of infos as inputs; `images_bgr` is a sequence of one picture (h, w, 3) uint8 BGR.

    With `root` None, sweeps that are not at the path of the info are searched beside the infos.
    """
    (picture,) = images_bgr
    prepared = prepare_image(rule.views, picture)
    path = find_file(rig.info['point_cloud']['velodyne_path'], rig.source, root, 'sweep')
    points = read_points(path, rule.load_dim)[:, list(rule.use_dim)]
    return FusedFrame(
        np.ascontiguousarray(points),
        rig.name,
        images=prepared.tensor[None],
        calibration=camera_matrices(rig.lidar2img[0], prepared.to_input),
        image_files=tuple(str(file or '') for file in rig.pictures),
    )


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    """Return the boxes of a frame, best first, for a program that runs the head's file by itself.

    `outputs` are, per level, logits of classes, deltas, and logits of directions (`anchors3d.decode`).
    """
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = MvxNetOnnx, 'head'
