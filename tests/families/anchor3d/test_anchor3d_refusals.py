"""Configs of LiDAR detectors that do not fit, full grids, and sizes at the edge of the grid."""

import numpy as np
import pytest

import toy_anchor3d
from dev.zoo.configs import installed_folder
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import DETECTOR, find_family
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.points import voxelise
from proofs import prove_outputs
from toy_centerpoint import ENGINE, paths_of, sweep
from verdicts import cases_of, matched_of


def checked(path):
    """Check a config as the exporter does."""
    toy_anchor3d.register()
    cfg = load_config(str(path))
    family = find_family(cfg, DETECTOR)
    family.check(cfg, family.choose(opset=0))


@pytest.mark.parametrize('kind', ['kitti', 'dynamic'])
def test_a_sweep_of_more_voxels_than_the_maximum_gives_the_same_boxes(kind):
    detector, folder, *_ = toy_anchor3d.exported(kind)
    points = sweep(2, 6000, spread=1.1)
    points[:, :3] = np.random.default_rng(0).uniform(-1, 1, (6000, 3)) * [6.4, 8.0, 1.6]
    limit, cells = detector.rule.max_voxels, len(np.unique(np.floor(points[:, :2] / 0.4), axis=0))
    assert limit in (600, -1) and cells > 600
    assert kind == 'dynamic' or len(voxelise(points, detector.rule)[0]) == limit
    verdict = prove_outputs(detector, paths_of(folder), [Sweep(points, 'full')], ENGINE)
    assert all(case.passed for case in cases_of(verdict))
    assert matched_of(verdict) >= 3


def test_a_quotient_just_below_a_whole_number_is_that_number(tmp_path):
    """(0.3 - 0) / 0.1 is 2.9999999999999996 in float64, (8.7 - 0) / 0.3 is 28.999998 in float32."""
    toy_anchor3d.register()
    words = {
        '[-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]\nnorm': '[0, 0, -1.6, 8.7, 8.7, 1.6]\nnorm',
        'voxel_size=[0.4, 0.4, 3.2], max_voxels': 'voxel_size=[0.3, 0.3, 3.2], max_voxels',
        'output_shape=[40, 32]': 'output_shape=[29, 29]',
    }
    path = toy_anchor3d.write_config(tmp_path, 'kitti', words=words)
    checked(path)
    cfg = load_config(path)
    family = find_family(cfg, DETECTOR)
    assert family.preprocess_rule(cfg).grid_size[:2] == (29, 29)
    assert family.build(cfg).voxel_layer.grid_size[:2].tolist() == [29, 29]


def test_a_model_without_a_family_is_refused_by_its_part():
    with pytest.raises(ConfigError, match='RoIAwarePool3d'):
        checked(installed_folder('mmdet3d') / 'parta2/hv_PartA2_secfpn_2x8_cyclic_80e_kitti-3d-3class.py')
