"""The graph of a LiDAR model that the others feed, in INT8: calibrated on what they give; a proof of it."""

import json

import numpy as np
import pytest

import toy_anchor3d
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.bench.precision.dense_target import find_target
from mmdeploy_ext.cli.quantize_app import main
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.tasks.bbox3d import match_detections
from mmdeploy_ext.spec.metadata import least_precision, read_metadata
from proofs import prove
from toy_centerpoint import sweep
from verdicts import matched_of

ENGINE = dict(engine='OnnxRuntimeBackend')
COUNT = 6


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweeps')
    for seed in range(COUNT):
        sweep(seed, 400 + 100 * seed).tofile(folder / f'{seed}.bin')
    return folder


@pytest.fixture(scope='module')
def made(drive, tmp_path_factory):
    """The INT8 folder of the small PointPillars, and its report."""
    _, folder, *_ = toy_anchor3d.exported()
    place = tmp_path_factory.mktemp('int8')
    words = [str(folder), '--calibrate', str(drive), '--output', str(place / 'pillars'), '--rounds', '0']
    assert main([*words, '--reduce-range', '--json', str(place / 'r.json')]) == 0  # right on every CPU
    return folder, place / 'pillars', json.loads((place / 'r.json').read_text())


def paths_of(folder):
    return [str(folder / f'{name}.onnx') for name in ('backbone', 'head')]


def test_the_head_is_quantised_and_the_points_side_stays(made):
    folder, int8, report = made
    assert sha256_file(int8 / 'backbone.onnx') == sha256_file(folder / 'backbone.onnx')
    precisions = [read_metadata(path).precision for path in paths_of(int8)]
    assert precisions == ['fp32', 'int8'] and least_precision(map(read_metadata, paths_of(int8))) == 'int8'
    assert (report['images'], report['images_are']) == (COUNT, 'sweeps')
    last = ['bbox_head/conv_cls', 'bbox_head/conv_reg', 'bbox_head/conv_dir_cls']
    assert [name for name in report['float_layers'] if name.endswith(tuple(last))] == report['float_layers']
    assert len(report['float_layers']) == 3 and report['layers'] >= 5
    assert all(figures['cosine'] > 0.99 for figures in report['outputs'].values())


def test_it_is_within_the_bars_of_int8(made):
    detector, *_ = toy_anchor3d.exported()
    _, int8, _ = made
    drive = [Sweep(sweep(seed, 500), f'sweep {seed}') for seed in (11, 12)]
    verdict = prove(detector, paths_of(int8), drive, ENGINE)
    assert verdict.passed and not verdict.proven, verdict.failures
    assert matched_of(verdict) >= 20


def test_a_folder_of_several_graphs_is_that_of_its_family():
    _, folder, *_ = toy_anchor3d.exported('voxels')
    target = find_target(str(folder), None)
    assert target.model.name == 'head.onnx' and [path.name for path in target.beside] == ['backbone.onnx']
    assert target.output == folder.with_name(f'{folder.name}.int8') / 'head.onnx'
    assert find_target(str(target.model), None).output == folder / 'head.int8.onnx'


def test_corners_judge_sizes_and_headings_where_bars_are_wide():
    def box(**more):
        row = dict(x=0.0, y=0.0, z=0.0, l=4.0, w=2.0, h=1.5, yaw=0.0, vx=0.0, vy=0.0) | more
        return Detections3D(np.float32([[*row.values()]]), np.float32([0.9]), np.array([0]))

    def judged(**more):
        bars = dict(distance_bar=1.0, score_bar=0.15, corner_bar=1.0)
        return match_detections('frame', box(), box(**more), **bars).passed

    assert judged(x=0.5, l=4.3, yaw=0.1) and judged(yaw=2 * np.pi)
    assert not judged(l=6.5) and not judged(yaw=np.pi) and not judged(vx=1.2) and not judged(yaw=0.6)
