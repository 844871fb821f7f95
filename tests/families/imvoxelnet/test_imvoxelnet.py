"""ImVoxelNet: proofs of a toy, cameras, what is refused; test_monocular.py has `mm2onnx run`."""

import numpy as np
import pytest

from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.evaluate import detector as test_loop
from mmdeploy_ext.families.imvoxelnet import reference
from mmdeploy_ext.runtime.preprocess.cam2img import check_projection
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from proofs import prove
from toy_monocular import exported, options, picture, seeded, toy

KIND = 'imvoxelnet'
PROJECTION = np.array(
    [[160.0, -250, 0.5, 9], [50, 0.2, -240, 20], [1, 0.01, 0.02, 0.3], [0, 0, 0, 1]], np.float64
)
"""A camera of a picture of 300 x 100 pixels, from the frame of the LiDAR."""


RAW = dict(form='raw')


@pytest.mark.parametrize('chosen', in_suite([RAW, dict(dynamic=True), dict(batch=2)], RAW))
def test_a_file_is_proven(chosen):
    verdict = prove(seeded(KIND), exported(KIND, **chosen), [picture()], timed=False)
    assert verdict.proven, verdict.failures
    assert verdict.summary()['matched'] > 100


@pytest.mark.matrix
def test_boxes_of_mmdet3d_0_17_are_proven():
    verdict = prove(seeded('imvoxelnet_old'), exported('imvoxelnet_old'), [picture()], timed=False)
    assert verdict.proven, verdict.failures
    (found,), (other,) = (
        seeded(kind).family.reference(seeded(kind).model).results([prepared(kind)], True)
        for kind in ('imvoxelnet_old', KIND)
    )
    assert {*map(tuple, found.boxes[:, :2])} != {*map(tuple, other.boxes[:, :2])}


def prepared(kind):
    return prepare_image(seeded(kind).rule, picture()[1]).with_camera(PROJECTION)


def test_a_camera_of_a_picture_is_given_back_as_it_was():
    detector, (_, image) = seeded(KIND), picture()
    prepared = prepare_image(detector.rule, image).with_camera(PROJECTION)
    batch = detector.family.feeds([prepared], rescale=True)
    assert np.array_equal(batch['lidar2img'][0], PROJECTION.astype(np.float32))
    (meta,) = reference.metas([prepared])
    assert np.array_equal(meta['lidar2img'], PROJECTION.astype(np.float32))
    assert np.array_equal(meta['scale_factor'], prepared.scale_factor)


def test_the_test_loop_takes_the_camera_from_the_meta_of_a_picture():
    rule, (_, image) = seeded(KIND).rule, picture()
    expected = prepare_image(rule, image)
    meta = dict(
        lidar2img=PROJECTION.astype(np.float32),
        ori_shape=image.shape,
        img_shape=(*expected.img_shape, 3),
        scale_factor=expected.scale_factor,
    )
    prepared = test_loop._prepared(expected.tensor, meta)
    assert np.array_equal(reference.original_camera(prepared), meta['lidar2img'])
    prepared = test_loop._prepared(expected.tensor, dict(meta, cam2img=np.eye(3)), camera='lidar2img')
    assert np.array_equal(reference.original_camera(prepared), meta['lidar2img'])


def test_what_the_graphs_do_not_reproduce_is_refused_by_its_key():
    changes = [
        (dict(test_cfg=dict(use_rotate_nms=False)), 'use_rotate_nms'),
        (dict(test_cfg=dict(nms_thr=None)), 'nms_thr=None'),
        (dict(coord_type='CAMERA'), "coord_type='CAMERA'"),
        (dict(bbox_head=dict(use_direction_classifier=False)), 'use_direction_classifier'),
        (dict(bbox_head=dict(type='ImVoxelHead')), 'ImVoxelHead'),
    ]
    for change, message in changes:
        cfg = toy(KIND)
        for part, values in change.items():
            if isinstance(values, dict):
                cfg.model[part].update(values)
            else:
                cfg.model[part] = values
        with pytest.raises(ConfigError, match=f'^(?!.*no family).*{message}'):
            find_family(cfg).check(cfg, options(KIND))
    with pytest.raises(ConfigError, match='lidar2img'):
        seeded(KIND).family.check_dataset(seeded(KIND).cfg, [dict(img_metas=dict(cam2img=np.eye(3)))])
    bad_row, bad_value = np.eye(4)[[1, 2, 0, 3]], np.eye(4)[[1, 2, 0, 3]]
    bad_row[3, 0], bad_value[0, 0] = 1.0, np.nan
    for camera in (bad_row, bad_value, np.diag([1266.4, 1266.4, 1.0, 1.0])):  # the last: intrinsics alone
        with pytest.raises(ShapeError, match='lidar2img'):
            check_projection(camera)
