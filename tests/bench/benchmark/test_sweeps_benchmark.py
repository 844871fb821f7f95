"""The benchmark of LiDAR detectors: whole where nobody asks for the backbone alone."""

import json

import pytest

import toy_centerpoint
from mmdeploy_ext.cli import benchmark_app


@pytest.fixture(scope='module')
def graphs():
    return toy_centerpoint.exported()[1]


def run(*words):
    _, _, config, checkpoint = toy_centerpoint.exported()
    options = ['--max-iter', 2, '--warmup', 1, '--threads', 1, *words]
    return benchmark_app.main([config, checkpoint, *map(str, options)])


def test_a_whole_centerpoint_is_measured_from_points_to_boxes(graphs, tmp_path):
    toy_centerpoint.sweep(7, 600).tofile(tmp_path / '7.bin')
    target = tmp_path / 'b.json'
    words = ['--onnx', graphs, '--sweep', tmp_path / '7.bin', '--no-memory', '--json', target]
    assert run(*words) == 0
    result = json.loads(target.read_text())
    torch_row, row = result['contenders']
    assert (torch_row['name'], row['name']) == ('torch', 'onnxruntime deploy')
    assert torch_row['detections_per_image'] == row['detections_per_image'] > 5
    for parts in (torch_row['parts_ms'], row['parts_ms']):
        assert set(parts) == {'backbone', 'head', 'boxes'} and min(parts.values()) > 0
    assert result['input_shape'] == '600x5' and result['family'] == 'centerpoint'
