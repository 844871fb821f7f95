"""Pipeline steps: what they do to pixels they also do to matrices."""

import numpy as np
import torch
from mmdet3d.datasets.pipelines import Compose

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mm2onnx_driving.layers.pipelines import (
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


def test_the_bundle_keeps_times_in_float64():
    data = dict(
        timestamp=1533151603.54759, ego_pose=np.eye(4, dtype=np.float32), img=[np.zeros((60, 120, 3))]
    )
    bundle = dict(type='PETRFormatBundle3D', class_names=['a'], collect_keys=['timestamp', 'ego_pose'])
    result = Compose([bundle])(data)
    assert result['timestamp'].data.dtype == torch.float64 and result['timestamp'].data == 1533151603.54759
    assert result['ego_pose'].data.dtype == torch.float32
    assert result['img'].data.shape == (1, 3, 60, 120)
