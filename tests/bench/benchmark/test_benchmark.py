"""The benchmark: turns, figures, files, errors. Nothing here depends on how fast the machine is."""

import json
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
from onnx import helper, numpy_helper

from mmdeploy_ext.bench.benchmark import measure
from mmdeploy_ext.bench.benchmark.base import doubts
from mmdeploy_ext.bench.benchmark.measure import Contender, Run, load_notes
from mmdeploy_ext.bench.precision.damage import counted
from mmdeploy_ext.cli import benchmark_app

MODEL = 'configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'
FILE = 'demo/atss_toy.onnx'
SHAPE = '--shape', '128', '160'


def contender(name, log=None, engine='onnxruntime', form='full'):
    def run(sample):
        if log is not None:
            log.append((name, sample))
        return Run(1.0, 0.5, 3)

    return Contender(name, engine, form, run)


# ---- turns and figures


def test_every_round_runs_each_contender_once_in_an_order_that_rotates():
    log, names = [], ['torch', 'full', 'raw']
    contenders = [contender(name, log) for name in names]
    runs = measure.interleave(contenders, ['first', 'second'], rounds=3, warmup=2)
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert len(rounds) == 5 and all({name for name, _ in one} == set(names) for one in rounds)
    assert {one[0][0] for one in rounds[2:]} == set(names), 'each is first once in three rounds'
    samples = [{sample for _, sample in one} for one in rounds]
    assert samples == [{'first'}, {'second'}] * 2 + [{'first'}]
    assert {name: len(mine) for name, mine in runs.items()} == dict.fromkeys(names, 3)
    short = measure.interleave([contender('torch')], ['first'], rounds=9, warmup=1, seconds=1e-9)
    assert len(short['torch']) == measure.MIN_ROUNDS == 3


def test_ratios_are_taken_round_by_round():
    contenders = [contender('torch', engine='torch', form=''), contender('full')]
    seconds = dict(torch=[1.0, 4.0, 2.0], full=[0.5, 2.0, 1.0])
    runs = {name: [Run(value, value / 2, 6) for value in values] for name, values in seconds.items()}
    torch_row, row = measure.summarise(contenders, runs, batch=2, processes=3)
    assert torch_row['ratio_to_torch']['median'] == 1
    assert row['ratio_to_torch'] == dict(median=0.5, q1=0.5, q3=0.5, mad=0, min=0.5, max=0.5)
    assert row['total_ms']['median'] == 1000 and row['network_ms']['median'] == 500
    assert row['postprocess_ms']['median'] == 500 and row['detections_per_image'] == 3
    assert row['images_per_s'] == 6, 'two images per second in each of three processes'


def test_products_are_counted_by_the_sizes_of_a_run():
    nodes = [
        helper.make_node('Conv', 'xw', 'c', strides=[2, 2]),
        helper.make_node('ConvTranspose', 'cv', 'u', strides=[2, 2]),
        helper.make_node('MatMul', 'um', 'o'),
    ]
    ends = [
        helper.make_tensor_value_info('x', 1, ['b', 3, 'h', 9]),
        helper.make_tensor_value_info('o', 1, None),
    ]
    shapes = dict(w=(4, 3, 3, 3), v=(4, 2, 2, 2), m=(8, 7))
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    model = helper.make_model(helper.make_graph(nodes, 'g', ends[:1], ends[1:], weights), ir_version=8)
    model.opset_import[0].version = 17
    products = [count for _, count in counted(model, dict(x=np.ones((2, 3, 9, 9), np.float32))).values()]
    # maps of 4 x 4 cells, of 8 x 8, of 8 x 7
    assert products == [2 * 4 * 16 * 27, 2 * 4 * 16 * 8, 2 * 2 * 8 * 7 * 8]


def test_the_time_of_int8_is_over_that_of_float32(monkeypatch):
    runs = {name: [Run(s, None, 0, dict(cpu=s * s))] * 2 for name, s in dict(float=2, int8=1).items()}
    monkeypatch.setattr(measure, 'interleave', lambda *_: runs)
    monkeypatch.setattr(measure, 'build_backend', MagicMock())
    found = measure.time_files('f.onnx', 'i.onnx', [dict(x=np.zeros((1, 3, 4, 6)))], 2)
    assert [found[key]['median'] for key in ('ratio', 'cpu_ratio')] == [0.5, 0.25]
    assert [found[key]['median'] for key in ('float_ms', 'int8_ms')] == [2000, 1000]
    assert (found['rounds'], found['height'], found['width']) == (2, 4, 6)


def test_spread_is_median_quartiles_and_mad():
    figures = measure.spread([1, 2, 3, 4, 100])
    assert figures == dict(median=3, q1=2, q3=4, mad=1, min=1, max=100)


@pytest.mark.parametrize(
    ('counts', 'notes'),
    [((0, 0), ['no']), ((100, 98), []), ((100, 97), ['the']), ((0, 1), ['the']), ((5,), [])],
)
def test_unlike_or_no_detections_of_the_main_input_and_a_busy_machine_are_noted(counts, notes):
    rows = [dict(input='a', detections_per_image=count) for count in counts]
    found = doubts([*rows, dict(input='b', detections_per_image=50)], 'a')
    assert [note.split()[0] for note in found] == notes
    assert [len(load_notes(share)) for share in (None, 0.05, 0.051)] == [0, 0, 1]


# ---- the tool


def run(*words, files=(FILE,)):
    onnx_words = ['--onnx', *map(str, files)] if files else []
    options = ['--max-iter', '2', '--warmup', '1', '--threads', '1', *map(str, words)]
    return benchmark_app.main([*MODEL, *onnx_words, *options])


def test_one_run_gives_table_json_and_chart(tmp_path, capsys):
    target, chart = tmp_path / 'b.json', tmp_path / 'b.png'
    words = ['--json', target, '--chart', chart, '--no-memory', '--fuse-conv-bn', '--repeat-num', 2]
    assert run(*words, '--log-interval', 1, *SHAPE) == 0
    captured, result = capsys.readouterr(), json.loads(target.read_text())
    names = ['torch', 'torch fused', 'onnxruntime full']
    assert [row['name'] for row in result['contenders']] == names
    assert (result['rounds'], result['threads'], result['input_shape']) == (4, 1, '1x3x128x160')
    for row in result['contenders']:
        assert row['runs'] == len(row['samples_ms']) == 4
        assert row['total_ms']['min'] > 0 and row['ratio_to_torch']['median'] > 0
        assert row['detections_per_image'] == result['contenders'][0]['detections_per_image'] > 0
    assert row['total_ms']['min'] >= row['network_ms']['min'] > 0
    assert cv2.imread(str(chart)).std() > 10
    assert all(name in captured.out for name in names) and 'Done round [4/4]' in captured.err


@pytest.mark.timeout(1200)
@pytest.mark.matrix
def test_inductor_finds_what_eager_finds(tmp_path):
    target = tmp_path / 'b.json'
    assert run('--engines', 'torch,torch-compile', '--json', target, *SHAPE, files=()) == 0
    rows = json.loads(target.read_text())['contenders']
    assert rows[0]['detections_per_image'] == rows[1]['detections_per_image'] > 0
    assert all(row['memory']['peak_mb'] > 0 for row in rows)
