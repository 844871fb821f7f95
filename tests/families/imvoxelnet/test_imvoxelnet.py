"""ImVoxelNet: proofs of a toy, planted faults, ties of voxels, cameras, what is refused."""

import functools
import json

import cv2
import numpy as np
import pytest

import toy_imvoxelnet
from marking import in_suite
from mmdeploy_ext.cli import run_app
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, ShapeError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.evaluate import detector
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.imvoxelnet import graphs, reference, samples
from mmdeploy_ext.preprocess.cam2img import check_projection
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.references import references
from proofs import run_cases
from toy_imvoxelnet import SIZE, exported, options, seeded
from toy_monocular import picture

PROJECTION = np.array(
    [[160.0, -250, 0.5, 9], [50, 0.2, -240, 20], [1, 0.01, 0.02, 0.3], [0, 0, 0, 1]], np.float64
)
"""A camera of a picture of 300 x 100 pixels, from the frame of the LiDAR."""


@pytest.mark.parametrize(
    ('form', 'values'),
    in_suite(
        [
            ('full', dict(dynamic=True)),
            ('full', dict(batch=2)),
            ('raw', {}),
        ],
        ('raw', {}),
    ),
)
def test_a_file_is_proven(form, values, tmp_path):
    file = exported(tmp_path / 'm.onnx', picture()[1], form=form, **values)
    verdict, _ = prove(seeded(), file, [picture()], timed=False)
    assert verdict.proven, verdict.failures
    assert verdict.summary()['matched'] > 100


@functools.cache
def known():
    return references(seeded(), options(dynamic=True), [picture()])


def changed(module, name, change):
    """Return a patch of a function: `change` gets the original and its arguments."""
    original = getattr(module, name)
    return lambda patch: patch.setattr(module, name, functools.partial(change, original))


def cameras(change):
    """Return a patch of the cameras that voxels are projected by."""
    return changed(graphs, 'projected', lambda original, points, cams: original(points, change(cams)))


def volume_with(change):
    """Return a patch of the last two arguments of `Network.volume`, cameras and ratios."""
    original = graphs.Network.volume
    return lambda patch: patch.setattr(
        graphs.Network,
        'volume',
        lambda self, maps, image, cams, ratios: original(self, maps, image, *change(cams, ratios)),
    )


FAULTS = {
    'transposed camera': cameras(lambda cams: cams.transpose(1, 2)),
    'ratios of the picture are forgotten': volume_with(lambda cams, ratios: (cams, ratios * 0 + 1)),
}


@pytest.mark.matrix
@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_is_not_proven(fault, tmp_path, monkeypatch):
    references_of_toy = known()
    with monkeypatch.context() as patch:
        FAULTS[fault](patch)
        file = exported(tmp_path / 'm.onnx', picture()[1], dynamic=True)
    with build_backend('OnnxRuntimeBackend', file) as backend:
        assert not all(case.passed for case in run_cases(references_of_toy, backend))


def test_a_camera_of_a_picture_is_given_back_as_it_was():
    deployment, (_, image) = seeded(), picture()
    prepared = deployment.rule.apply(image).with_camera(PROJECTION)
    batch = deployment.family.feeds([prepared], rescale=True)
    assert np.array_equal(batch['lidar2img'][0], PROJECTION.astype(np.float32))
    (meta,) = reference.metas([prepared])
    assert np.array_equal(meta['lidar2img'], PROJECTION.astype(np.float32))
    assert np.array_equal(meta['scale_factor'], prepared.scale_factor)


def test_mm2onnx_run_takes_a_file_of_cameras_and_gives_the_boxes_of_pytorch(tmp_path, capsys):
    _, image = picture()
    file, photo = exported(tmp_path / 'm.onnx', image), tmp_path / 'a.png'
    cv2.imwrite(str(photo), image)
    command = [str(file), str(photo), '--out', str(tmp_path), '--json', str(tmp_path / 'a.json')]
    assert run_app.main(command) == 2
    assert 'camera' in capsys.readouterr().err
    (tmp_path / 'cameras.json').write_text(json.dumps({'images/a.png': PROJECTION.tolist()}))
    assert run_app.main([*command, '--cameras', str(tmp_path / 'cameras.json')]) == 0
    entries = json.loads((tmp_path / 'a.json').read_text())['images'][0]['detections']
    deployment = seeded()
    prepared = deploy.prepare_fixed(deployment.rule, image, *SIZE).with_camera(PROJECTION)
    (expected,) = deployment.family.reference(deployment.model).results([prepared], rescale=True)
    boxes = np.array([entry['box'] for entry in entries])
    assert len(boxes) == len(expected) > 5
    np.testing.assert_allclose(boxes, expected.boxes[:, :7], atol=1e-3)


def test_the_test_loop_takes_the_camera_from_the_meta_of_a_picture():
    rule, (_, image) = seeded().rule, picture()
    expected = rule.apply(image)
    meta = dict(
        lidar2img=PROJECTION.astype(np.float32),
        ori_shape=image.shape,
        img_shape=(*expected.img_shape, 3),
        scale_factor=expected.scale_factor,
    )
    prepared = detector._prepared(expected.tensor, meta)
    assert np.array_equal(samples.original_camera(prepared), meta['lidar2img'])
    prepared = detector._prepared(expected.tensor, dict(meta, cam2img=np.eye(3)), camera='lidar2img')
    assert np.array_equal(samples.original_camera(prepared), meta['lidar2img'])


def test_what_the_graphs_do_not_reproduce_is_refused_by_its_key():
    changes = [
        (dict(test_cfg=dict(use_rotate_nms=False)), 'use_rotate_nms'),
        (dict(test_cfg=dict(nms_thr=None)), 'nms_thr=None'),
        (dict(coord_type='CAMERA'), "coord_type='CAMERA'"),
        (dict(bbox_head=dict(use_direction_classifier=False)), 'use_direction_classifier'),
    ]
    for change, message in changes:
        cfg = load_config(toy_imvoxelnet.CONFIG)
        for part, values in change.items():
            if isinstance(values, dict):
                cfg.model[part].update(values)
            else:
                cfg.model[part] = values
        with pytest.raises(ConfigError, match=message):
            seeded().family.check(cfg, options())
    with pytest.raises(ConfigError, match='lidar2img'):
        seeded().family.check_dataset(seeded().cfg, [dict(img_metas=dict(cam2img=np.eye(3)))])
    bad_row, bad_value = np.eye(4)[[1, 2, 0, 3]], np.eye(4)[[1, 2, 0, 3]]
    bad_row[3, 0], bad_value[0, 0] = 1.0, np.nan
    for camera in (bad_row, bad_value, np.diag([1266.4, 1266.4, 1.0, 1.0])):  # the last: intrinsics alone
        with pytest.raises(ShapeError, match='lidar2img'):
            check_projection(camera)
