"""The benchmark of streaming models: parts and bytes. Nothing here depends on how fast the machine is."""

import json

import numpy as np
import onnx
import pytest

import toy_stream_files as files
from mmdeploy_ext.cli import benchmark_app


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a config, a checkpoint and a deploy export."""
    return files.write_model(tmp_path_factory.mktemp('benchmark'))


def run(place, *words):
    options = ['--max-iter', '2', '--warmup', '1', '--threads', '1', *map(str, words)]
    return benchmark_app.main([str(place / 'toy_stream.py'), str(place / 'toy.pth'), *options])


def test_one_run_measures_pytorch_and_files_part_by_part_and_leaves_out_what_fails(place, tmp_path, capsys):
    bad, target = failing(place / 'deploy', tmp_path / 'bad'), tmp_path / 'b.json'
    words = ['--no-memory', '--onnx', place / 'deploy', bad]
    assert run(place, *words) == 1
    assert 'out of range' in capsys.readouterr().err
    assert run(place, *words, '--skip-refused', '--json', target) == 0
    printed, result = capsys.readouterr().out, json.loads(target.read_text())
    torch_row, deploy = result['contenders']
    assert [row['file'] for row in result['contenders']] == ['', str(place / 'deploy')]
    assert set(torch_row['parts_ms']) == set(deploy['parts_ms']) == {'backbone', 'embedding', 'head'}
    assert torch_row['fed_bytes'] is None and deploy['fed_bytes'] == 72
    assert deploy['parts_ms']['embedding'] == 0 < torch_row['parts_ms']['embedding']
    assert torch_row['detections_per_image'] == deploy['detections_per_image'] == 20
    assert result['input_shape'] == '6x3x32x96'
    (refused,) = result['refused']
    assert refused['file'] == str(bad) and 'out of range' in refused['reason'] and str(bad) in printed


def failing(source, folder):
    """Write files whose head loads, and then reads beyond an array."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(folder / 'pts_head_memory.onnx')
    graph = model.graph
    for node in graph.node:
        node.input[:] = ['taken' if name == 'prev_exists' else name for name in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1000]), 'index'))
    gather = onnx.helper.make_node('Gather', ['prev_exists', 'index'], ['taken'], name='out of range')
    nodes = [gather, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, folder / 'pts_head_memory.onnx')
    return folder
