"""CenterPoint through both files equals mmdet3d's own test path, on sweeps that were never traced."""

import numpy as np
import onnx
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

import toy_centerpoint
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.runtime.frames import Sweep
from proofs import prove, prove_outputs
from toy_centerpoint import ENGINE, paths_of, sweeps
from verdicts import cases_of, checks_of, matched_of


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported()


def test_the_reference_is_the_unpatched_detector(toy):
    detector = toy[0]
    points = toy_centerpoint.sweep(0)
    with torch.no_grad():
        (result,) = detector.model(
            return_loss=False,
            points=[[torch.from_numpy(points)]],
            img_metas=[[dict(box_type_3d=LiDARInstance3DBoxes)]],
        )
    found = detector.family.reference(detector.model).step(Sweep(points)).detections
    expected = result['pts_bbox']
    assert len(found) == len(expected['scores_3d']) > 5
    np.testing.assert_array_equal(np.sort(found.scores), np.sort(expected['scores_3d'].numpy()))


def test_both_files_are_proven_on_unseen_sweeps(toy):
    detector, folder, *_ = toy
    verdict = prove(detector, paths_of(folder), sweeps(3), ENGINE, timed=False)
    assert verdict.proven, [check for check in checks_of(verdict) if not check.passed]
    assert cases_of(verdict)[3].name == 'one point'
    names = {row.tensor for case in cases_of(verdict) for row in case.tensors}
    assert {'bev', 'reg_0', 'heatmap_1'} <= names
    assert matched_of(verdict) > 15


def test_a_head_with_deformable_convolutions_is_exported_at_the_opset_that_has_them(tmp_path, capsys):
    from mmdeploy_ext.cli import export_app

    detector, folder, config, checkpoint = toy_centerpoint.exported('deformable')
    words = [config, checkpoint, '--output-file', str(tmp_path / 'graphs'), '--opset-version', '17']
    assert export_app.main(words) == 2
    assert '--opset-version 17' in capsys.readouterr().err
    models = [onnx.load(path) for path in paths_of(folder)]
    assert [entry.version for model in models for entry in model.opset_import if not entry.domain] == [19, 19]
    assert sum(node.op_type == 'DeformConv' for node in models[1].graph.node) == 4  # two branches, two tasks
    (points,) = sweeps(1)
    expected = detector.family.reference(detector.model).step(points).detections
    with CenterPointOnnx(folder) as runtime:
        np.testing.assert_allclose(runtime.step(points).detections.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize(
    'words, expected',
    [
        ({"type='HardSimpleVFE', num_features=5": "type='DynamicSimpleVFE'"}, 'pts_voxel_encoder'),
        ({"nms_type='rotate'": "nms_type='soft'"}, 'nms_type'),
        ({'nms_thr=0.2': 'nms_thr=[0.2, 0.5]'}, 'nms_thr'),
        ({"'CenterPoint',": "'CenterPoint', img_backbone=dict(type='ResNet'),"}, 'img_backbone'),
        ({'sparse_shape=[9, 40, 32]': 'sparse_shape=[9, 40, 40]'}, 'sparse_shape'),
        ({'use_dim=5': 'use_dim=4'}, 'use_dim'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_config_that_is_not_exported_is_refused_by_name(tmp_path, words, expected):
    toy_centerpoint.register()
    cfg = load_config(toy_centerpoint.write_config(tmp_path, words=words))
    family = find_family(cfg)
    with pytest.raises(ConfigError, match=expected):
        family.check(cfg, FAMILIES['centerpoint'].choose())
        family.build(cfg)


def test_settings_beside_the_model_where_mmdet3d_had_them_first_are_taken(tmp_path):
    toy_centerpoint.register()
    cfg = load_config(toy_centerpoint.write_config(tmp_path))
    family = find_family(cfg)
    cfg.test_cfg = cfg.model.pop('test_cfg')
    family.check(cfg, family.choose(opset=0))
    assert family.build(cfg).pts_bbox_head.test_cfg.nms_type == 'rotate'


def test_the_form_for_engines_that_cannot_split_is_proven_and_found_in_the_file(toy, tmp_path):
    """TensorRT splits by constants alone: the tables need no split."""
    export_files(toy[0], toy[0].family.choose(sparse_form='tables'), str(tmp_path))
    tables = paths_of(tmp_path)
    assert not any(node.op_type == 'Split' for node in onnx.load(tables[0]).graph.node)
    verdict = prove_outputs(toy[0], tables, sweeps(1), ENGINE)
    assert verdict.proven, verdict.failures
