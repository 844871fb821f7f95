"""Pipeline steps: what they do to pixels they also do to matrices and boxes."""

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.pipelines import Compose

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.models.datasets.pipelines.augmentation import (
    ImageTransform,
    ResizeCropFlipRotImage,
)

TEST_704 = dict(
    H=900,
    W=1600,
    final_dim=(256, 704),
    bot_pct_lim=(0.0, 0.0),
    resize_lim=(0.38, 0.55),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)
SMALL = dict(
    H=60,
    W=120,
    final_dim=(32, 96),
    bot_pct_lim=(0.0, 0.2),
    resize_lim=(0.7, 1.1),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)


def camera():
    """Intrinsics and extrinsics (4, 4) of a camera that looks along x of the LiDAR frame, 60 x 120 px."""
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = [[70, 0, 60], [0, 70, 30], [0, 0, 1]]
    extrinsics = np.eye(4, dtype=np.float32)
    extrinsics[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    return intrinsics, extrinsics


def project(matrix, points):
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1) @ np.asarray(matrix, np.float64).T
    return homogeneous[:, :2] / homogeneous[:, 2:3]


def frame(num_cams=1, seed=0):
    """One frame whose 2D boxes are around the projected centres of its three 3D boxes."""
    rng = np.random.default_rng(seed)
    intrinsics, extrinsics = camera()
    points = np.array([[8.0, -2, 0.2], [10, 0.5, -0.4], [12, 3, 0.3]])
    centers = project(intrinsics @ extrinsics, points)
    boxes = np.concatenate([points - [0, 0, 0.5], np.full((3, 3), 1.0), np.zeros((3, 1)), np.ones((3, 2))], 1)
    ego_pose = np.eye(4, dtype=np.float32)
    ego_pose[:3, 3] = 600, 1600, 2
    return dict(
        img=[rng.integers(0, 256, (60, 120, 3)).astype(np.float32) for _ in range(num_cams)],
        intrinsics=[intrinsics.copy() for _ in range(num_cams)],
        extrinsics=[extrinsics] * num_cams,
        lidar2img=[intrinsics @ extrinsics] * num_cams,
        ego_pose=ego_pose,
        ego_pose_inv=np.linalg.inv(ego_pose),
        gt_bboxes=[np.concatenate([centers - 5, centers + 5], 1)] * num_cams,
        centers2d=[centers] * num_cams,
        gt_labels=[np.arange(3)] * num_cams,
        depths=[points[:, 0]] * num_cams,
        gt_bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        gt_labels_3d=np.arange(3),
    )


def test_the_test_transform_of_704x256_is_044_and_rows_140_to_396():
    transform = ResizeCropFlipRotImage(TEST_704, training=False).test_transform()
    assert transform.size == (704, 396) and transform.crop == (0, 140, 704, 396)
    matrix = np.array([[0.44, 0, 0], [0, 0.44, -140], [0, 0, 1]], np.float32)
    assert np.array_equal(transform.matrix(), matrix)


def test_a_mark_in_the_picture_moves_as_the_matrix_says():
    image = np.zeros((60, 120, 3), np.float32)
    image[38:42, 68:72] = 255
    transform = ImageTransform(0.9, (108, 54), (4, 10, 100, 50))
    result = transform.image(image)
    assert result.shape == (40, 96, 3) and result.dtype == np.float32
    rows, columns = np.nonzero(result[..., 0] > 128)
    center = transform.matrix() @ [70, 40, 1]
    assert np.abs(np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - center[:2]).max() < 0.6


def test_rotated_pictures_are_refused():
    with pytest.raises(ValueError, match=r'rot_lim=\(0.*1\).*\(0\.0.*0\.0\)'):
        ResizeCropFlipRotImage(dict(SMALL, rot_lim=(0, 1)), training=False)


def test_a_picture_of_another_size_than_the_calibration_is_refused():
    data = frame(num_cams=2)
    data['img'][1] = data['img'][1][:, :100]
    with pytest.raises(DataError, match=r'1.*60x100.*H=60.*W=120'):
        ResizeCropFlipRotImage(SMALL, training=False)(data)


def test_padding_reaches_the_next_multiple_and_remembers_the_size():
    data = Compose([dict(type='PadMultiViewImage', size_divisor=32)])(frame(num_cams=2))
    assert data['pad_shape'] == [(64, 128, 3)] * 2 and data['img_shape'] == [(60, 120, 3)] * 2
    assert not data['img'][0][60:].any() and not data['img'][0][:, 120:].any()
    fixed = Compose([dict(type='PadMultiViewImage', size=(70, 130))])(frame())
    assert fixed['img'][0].shape == (70, 130, 3)
    with pytest.raises(ValueError, match='expected one of them'):
        Compose([dict(type='PadMultiViewImage')])


def test_normalisation_turns_bgr_to_rgb_first():
    data = frame()
    blue = data['img'][0][..., 0].copy()
    result = Compose([dict(type='NormalizeMultiviewImage', mean=[1, 2, 3], std=[2, 4, 8], to_rgb=True)])(data)
    assert np.allclose(result['img'][0][..., 2], (blue - 3) / 8, atol=1e-5)


def test_the_bundle_keeps_times_in_float64():
    data = dict(frame(), timestamp=1533151603.54759, img_timestamp=[1533151603.5, 1533151603.6])
    keys = ['timestamp', 'img_timestamp', 'lidar2img', 'ego_pose']
    result = Compose([dict(type='PETRFormatBundle3D', class_names=['a'], collect_keys=keys)])(data)
    assert result['timestamp'].data.dtype == torch.float64 and result['timestamp'].data == 1533151603.54759
    assert result['img_timestamp'].data.dtype == torch.float64
    assert result['lidar2img'].data.dtype == torch.float32 and result['lidar2img'].data.shape == (1, 4, 4)
    assert result['img'].data.shape == (1, 3, 60, 120)
