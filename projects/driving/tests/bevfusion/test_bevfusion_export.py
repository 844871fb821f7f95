"""BEVFusion whole: four files, proven on generated frames."""

import dataclasses
from unittest import mock

import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_bevfusion
from mm2onnx_driving.bevfusion.fusion import BEVFusion
from mm2onnx_driving.bevfusion.runtime import OPENS
from mm2onnx_driving.bevfusion.view_transform import Rig
from mmdeploy_ext.runtime.tasks.bbox3d import match_detections
from proofs import prove
from verdicts import cases_of


@pytest.fixture(scope='module')
def detector():
    return toy_bevfusion.whole()[0]


@pytest.fixture(scope='module')
def frames():
    return toy_bevfusion.whole()[1]


def test_the_tables_pool_what_the_cells_say_where_all_cameras_look_at_one_place(detector, frames):
    transform = detector.model.encoders['camera']['vtransform']
    matrices = {name: torch.from_numpy(matrix)[None] for name, matrix in frames[1].calibration.items()}
    rig = Rig(**matrices)
    same = dataclasses.replace(rig, camera2lidar=rig.camera2lidar[:, :1].expand_as(rig.camera2lidar))
    weights, features = torch.rand(6, transform.D, 8, 12), torch.randn(6, transform.C, 8, 12)
    for one in (rig, same):
        cells = transform.cells(one)
        tables = transform.pool_tables(cells[0])
        wanted, found = (
            transform.pool(weights, features, cells),
            transform.pool_by_tables(weights, features, tables),
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(tables[3]) > 20  # cells of more than two tables hold


def test_boxes_of_the_files_are_those_of_pytorch(detector, frames, tmp_path):
    toy_bevfusion.export(detector, tmp_path)
    expected = detector.family.reference(detector.model).step(frames[1]).detections
    with OPENS(tmp_path) as runtime:
        row = match_detections('frame', expected, runtime.step(frames[1]).detections)
    assert row.passed and row.matched >= 20, row


def without_last(method):
    """Return a detector's `simple_test` that drops the last box of each frame."""

    def shortened(*args, **kwargs):
        results = method(*args, **kwargs)
        for result in results:
            result['pts_bbox'] = {name: values[:-1] for name, values in result['pts_bbox'].items()}
        return results

    return shortened


@pytest.mark.matrix
@pytest.mark.parametrize(
    'contract, sensor',
    [('portable', 'both'), ('portable', 'centers'), ('cuda-bevfusion', 'both'), ('autoware', 'lidar')],
)
def test_a_box_that_the_users_simple_test_drops_is_in_no_proven_file(tmp_path, contract, sensor):
    if sensor == 'both':
        detector, samples = toy_bevfusion.whole()
    else:
        detector = toy_bevfusion.toy(tmp_path, **toy_bevfusion.alone(sensor))
        samples = list(detector.family.data.generated_sweeps(detector.rule, 2))
    paths = toy_bevfusion.export(detector, tmp_path / 'files', contract=contract)
    assert prove(detector, paths, samples).title == 'PROVEN'
    with mock.patch.object(BEVFusion, 'simple_test', without_last(BEVFusion.simple_test)):
        verdict = prove(detector, paths, samples)
    assert verdict.title == 'NOT PROVEN'
    rows = [row for case in cases_of(verdict) for row in case.substituted]
    assert rows and all(row.extra == 1 for row in rows)


@pytest.mark.matrix
@pytest.mark.parametrize('exporter', ['torchscript', 'dynamo'])
def test_the_files_are_proven_on_frames_of_other_rigs(detector, frames, tmp_path, exporter):
    paths = toy_bevfusion.export(detector, tmp_path, exporter=exporter)
    verdict = prove(detector, paths, frames)
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 40


SWIN = dict(
    _delete_=True, type='SwinTransformer', embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8],
    window_size=7, out_indices=[1, 2, 3], drop_path_rate=0.2,
)  # fmt: skip
VARIANTS = {
    'circle NMS': dict(heads=dict(object=dict(test_cfg=dict(nms_type='circle')))),
    'Swin-T': dict(encoders=dict(camera=dict(backbone=SWIN, neck=dict(in_channels=[48, 96, 192])))),
}


@pytest.mark.matrix
@pytest.mark.parametrize('contract', ['portable', 'cuda-bevfusion'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_other_parts_are_proven(frames, tmp_path, variant, contract):
    changes = toy_bevfusion.merged(toy_bevfusion.CHANGES, VARIANTS[variant])
    detector = toy_bevfusion.toy(tmp_path, **changes)
    verdict = prove(detector, toy_bevfusion.export(detector, tmp_path / 'files', contract=contract), frames)
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 40
