"""CenterPoint for lidar_centerpoint: proven through the node's loop, faults in each part refused."""

import dataclasses

import numpy as np
import onnx
import pytest

import toy_centerpoint
from mm2onnx_driving.autoware import boxes, centerpoint
from mm2onnx_driving.autoware.boxes import read_settings
from mm2onnx_driving.autoware.centerpoint import GRAPHS, AutowareCenterPoint
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess import points as inputs
from planting import replaced, result
from proofs import prove, prove_outputs
from toy_centerpoint import ENGINE, paths_of
from verdicts import cases_of, graphs_of, matched_of

AUTOWARE = dict(contract='autoware')
RUNTIME = 'mm2onnx_driving.autoware'


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported('node', 'autoware')


def paths(folder):
    return paths_of(folder, GRAPHS)


def sweeps(count, first=0):
    return [Sweep(points(seed), f'sweep {seed}') for seed in range(first, first + count)]


def points(seed):
    """Return x, y, z, time lag of two sweeps."""
    found = toy_centerpoint.sweep(seed, 300 + 100 * seed)[:, :4]
    found[:, 3] = np.random.default_rng(seed).integers(0, 2, len(found)) * 0.1
    return np.ascontiguousarray(found)


@pytest.mark.matrix  # in the suite: the proof of test_centerpoint_export.py
def test_the_folder_is_proven_through_the_nodes_loop(toy):
    detector, folder, *_ = toy
    verdict = prove(detector, paths(folder), sweeps(2), ENGINE)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 10
    assert {row.tensor for row in cases_of(verdict)[0].tensors} == {
        *('pillar_features', 'spatial_features'),
        *boxes.OUTPUTS,
    }


def test_the_node_would_take_the_folder(toy, capsys):
    assert main([str(toy[1]), '--strict']) == 0
    assert '4 files, 0 errors, 0 warnings' in capsys.readouterr().out
    graph = onnx.load(paths(toy[1])[1]).graph
    assert [one.name for one in graph.output] == list(boxes.OUTPUTS)


def test_boxes_are_those_of_our_own_runtime_within_a_centimetre(toy):
    """Both suppress by the distance of centres; overlap, which mmdet3d has not, is off in the node."""
    ours = toy_centerpoint.exported('node')[1]
    without_overlap = replaced(f'{RUNTIME}.boxes:OVERLAP', lambda _: 2.0)
    with without_overlap, AutowareCenterPoint(toy[1]) as node, CenterPointOnnx(ours) as runtime:
        for sweep in sweeps(3):
            one, two = node.step(sweep).detections, runtime.step(sweep).detections
            in_range = np.abs(two.boxes[:, :2]).max(1) < 9  # post_center_range, which the node has not
            one_known = (np.abs(one.boxes[:, :2]).max(1) < 9).nonzero()[0]
            assert 10 <= len(two) < 256 and len(one_known) == in_range.sum()
            assert np.array_equal(one.labels[one_known], two.labels[in_range])
            gap = np.abs(one.boxes[one_known] - two.boxes[in_range])
            gap[:, 6] = np.abs((gap[:, 6] + np.pi) % (2 * np.pi) - np.pi)
            assert gap.max() < 0.01, gap.max(0)
            np.testing.assert_allclose(one.scores[one_known], two.scores[in_range], atol=1e-5)


def old_convention(found, *_):
    boxes = found.boxes.copy()
    boxes[:, 6] = -boxes[:, 6] - np.float32(np.pi / 2)
    return dataclasses.replace(found, boxes=boxes)


def test_a_yaw_of_the_old_convention_is_refused(toy):
    detector, folder, *_ = toy
    with replaced(f'{RUNTIME}.centerpoint:decode', result(old_convention)):
        verdict = prove_outputs(detector, paths(folder), sweeps(1, 1), ENGINE)
    assert all(graph.passed for graph in graphs_of(verdict)) and not cases_of(verdict)[0].passed


def checked(family, cfg):
    chosen = family.choose(opset=0, **AUTOWARE)
    family.check(cfg, chosen)
    contract_of(family, chosen).check(cfg)


BAD_CONFIGS = {
    'voxels': ({}, 'PointPillarsScatter'),
    'a class that the node does not know': (
        toy_centerpoint.NODE
        | {"class_names=['car', 'bus', 'pedestrian']": "class_names=['car', 'bus', 'barrier']"},
        'barrier',
    ),
    'a quotient below the whole number': (
        toy_centerpoint.NODE
        | {'[-6.4, -9.6, -1.6, 6.4, 9.6, 1.6]\nmodel': '[-49.6, -49.6, -1.6, 49.6, 49.6, 1.6]\nmodel'}
        | {'[0.4, 0.4, 3.2]': '[0.2, 0.2, 3.2]', 'output_shape=(48, 32)': 'output_shape=(496, 496)'},
        '496 cells along x, but 495',
    ),
}


@pytest.mark.parametrize('kind', BAD_CONFIGS)
def test_a_config_that_does_not_fit_is_refused_by_name(tmp_path, kind):
    words, message = BAD_CONFIGS[kind]
    toy_centerpoint.register()
    cfg = load_config(toy_centerpoint.write_config(tmp_path, words=words))
    with pytest.raises(ConfigError, match=message):
        checked(find_family(cfg), cfg)


def test_the_config_that_fits_is_what_the_node_takes():
    toy_centerpoint.register()
    cfg = load_config('projects/configs/Autoware/centerpoint_pillar032_nus.py')
    family = find_family(cfg)
    checked(family, cfg)
    assert family.preprocess_rule(cfg).grid_size == (480, 480, 1)


def crowded_points(rule):
    """Return points of more pillars than `rule` takes, some with more points than it takes.

    They are in the order of their cells, x from the last, then y from the first: beyond max_voxels the node
    drops the last pillars in this order, mmdet3d those in the order of their first points.
    """
    rng, grid = np.random.default_rng(0), np.array(rule.grid_size)
    count = rule.max_voxels + rule.max_voxels // 20 + 10
    cells = rng.permutation(np.unique(rng.integers(0, int(np.prod(grid)), 2 * count)))[:count]
    cells = np.concatenate([cells, np.repeat(cells[: count // 50 + 1], 2 * rule.max_points)])
    places = np.stack(np.unravel_index(cells, grid), 1) + rng.uniform(0.2, 0.8, (len(cells), 3))
    points = np.zeros((len(cells), rule.in_channels), np.float32)
    points[:, :3] = places * rule.voxel_size + rule.point_cloud_range[:3]
    points[:, 3] = rng.random(len(points))
    x, y, _ = np.floor(places).T
    return points[np.lexsort((y, -x))]


def test_a_crowded_sweep_has_the_same_pillars_in_the_node_and_in_mmdet3d(toy):
    settings, rule = read_settings(toy[1]), toy[0].rule
    points = crowded_points(rule)
    voxels, _, cells = inputs.pillars(points, rule)
    assert len(voxels) == settings.max_voxel_size
    features, found = centerpoint.decorated(points, settings)
    order, own = np.lexsort((cells[:, 3], cells[:, 2])), np.lexsort((found[:, 1], found[:, 0]))
    assert np.array_equal(features[own, :, : settings.point_feature_size], voxels[order])
    assert np.array_equal(found[own], cells[order, 2:])
