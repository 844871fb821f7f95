"""The rule of a sparse backbone's file is compared with mmcv's own voxelisation of the config."""

import dataclasses

import numpy as np
import pytest
from mmcv.ops import Voxelization

import toy_centerpoint
from mmdeploy_ext.proving.frames import compare_preparation
from mmdeploy_ext.proving.preprocessing import compare_voxels
from mmdeploy_ext.runtime.preprocess import points as inputs
from mmdeploy_ext.spec.preparation import VoxelRule

RULE = VoxelRule((-6.0, -4.0, -2.0, 6.0, 5.0, 2.0), (0.5, 0.25, 0.8), 5, 300, 'xyz', 5)


def judged(order='xyz', points=5, limit=300, **changes):
    """Compare a rule, in which the values that begin with `rule_` are changed, with mmcv's layer."""
    layer = Voxelization([*RULE.voxel_size], [*RULE.point_cloud_range], points, (100, limit)).eval()
    mode = 'dynamic' if -1 in (points, limit) else 'hard'
    rule = dataclasses.replace(RULE, order=order, max_points=points, max_voxels=limit, mode=mode).to_json()
    changed = {key.removeprefix('rule_'): value for key, value in changes.items()}
    return compare_voxels(layer, order, 5, {**rule, **changed})


@pytest.mark.parametrize(
    'values', [{}, dict(order='zyx'), dict(points=-1, limit=-1)], ids=['xyz', 'zyx', 'dynamic']
)
def test_the_right_rule_makes_the_voxels_of_mmcv(values):
    result = judged(**values)
    assert result.passed, result.text
    assert result.text == "equal to mmcv's Voxelization of the config (1 sweep)"


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('order', 'zyx'),
        ('point_cloud_range', [0.0, 0.0, -2.0, 6.0, 6.0, 2.0]),
        ('voxel_size', [0.5, 0.5, 1.0]),
        ('max_points', 2),
        ('max_voxels', 100),
        ('mode', 'dynamic'),
        ('in_channels', 4),
    ],
)
def test_another_rule_is_named(key, value):
    text = judged(**{f'rule_{key}': value}).text
    assert key in text
    assert 'equal' not in text


@pytest.mark.parametrize(
    'change',
    [
        lambda points: points[::-1],
        lambda points: points.astype(np.float16).astype(np.float32),
        lambda points: points[points[:, 0] > -6],
        lambda points: np.where(points == 6, np.float32(5.9), points),
    ],
    ids=['last points', 'float16', 'lower edge', 'upper edge'],
)
def test_a_fault_of_the_shared_voxelisation_is_seen(monkeypatch, change):
    original = inputs.voxelise
    monkeypatch.setattr(inputs, 'voxelise', lambda points, rule: original(change(points), rule))
    assert not judged().passed


@pytest.mark.matrix
def test_the_rule_of_a_detectors_file_is_compared_with_its_own_layer():
    """Moments of a proof have fewer voxels than the rule lets through."""
    detector = toy_centerpoint.exported('sparse')[0]
    rule = detector.rule
    for limit, passes in ((rule.max_voxels, True), (rule.max_voxels - 1, False)):
        changed = dataclasses.replace(rule, max_voxels=limit)
        result = compare_preparation(detector, changed, [], 'sweep')
        assert result.passed is passes, result.text
    assert 'max_voxels: got 599, expected 600' in result.text
