"""The benchmark of streaming models: parts and bytes. Nothing here depends on how fast the machine is."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr_export as toy
from mmdeploy_ext.benchmark import streams
from mmdeploy_ext.benchmark.clocks import PartClock
from mmdeploy_ext.benchmark.streams import StreamBenchmark
from mmdeploy_ext.cli import benchmark_app
from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.runtime.frames import Sweep

CONFIG = """
import toy_streampetr as toy
from projects.configs.nuscenes_stream import image_augmentation, stream_data

model = toy.model_cfg()
data = stream_data(
    image_augmentation((32, 96), (0.6, 0.7), source=(90, 160)), root='nowhere/',
    infos='infos', workers_per_gpu=0)
"""


def register():
    import mmdeploy_ext.families.streampetr.family  # noqa: F401


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a config, a checkpoint and a deploy export."""
    root = tmp_path_factory.mktemp('benchmark')
    (root / 'toy.py').write_text(CONFIG)
    torch.save(dict(state_dict=toy.model().state_dict(), meta={}), root / 'toy.pth')
    (root / 'deploy').mkdir()
    toy.write(root / 'deploy')
    return root


def run(place, *arguments):
    options = ['--max-iter', '3', '--warmup', '1', '--threads', '1', *map(str, arguments)]
    return benchmark_app.main([str(place / 'toy.py'), str(place / 'toy.pth'), *options])


def test_one_run_measures_pytorch_and_the_exported_files_part_by_part(place, tmp_path, capsys):
    target = tmp_path / 'b.json'
    assert run(place, '--no-memory', '--json', target, '--chart', tmp_path / 'b.png') == 0
    printed, result = capsys.readouterr().out, json.loads(target.read_text())
    torch_row, deploy = result['contenders']
    assert [row['name'] for row in result['contenders']] == ['torch', 'onnxruntime deploy']
    assert set(torch_row['parts_ms']) == set(deploy['parts_ms']) == {'backbone', 'embedding', 'head'}
    assert torch_row['fed_bytes'] is None and deploy['fed_bytes'] == 72
    assert deploy['parts_ms']['embedding'] == 0 < torch_row['parts_ms']['embedding']
    assert torch_row['detections_per_image'] == deploy['detections_per_image'] == 20
    assert result['input_shape'] == '6x3x32x96' and 'fed besides images' in printed
    assert (tmp_path / 'b.png').stat().st_size > 1000


def benchmark_of_sweeps(rule, monkeypatch, weights):
    """Return a benchmark of 30 sweeps whose model is loaded by `weights()`, and given back by it."""
    benchmark = object.__new__(StreamBenchmark)
    benchmark.args = SimpleNamespace(
        onnx=[], config='c.py', checkpoint='', cfg_options={}, device='cpu', sweep=['a.bin'] * 30,
        warmup=0, max_iter=30, repeat_num=1, spare_rounds=0,
    )  # fmt: skip
    family = SimpleNamespace(memory=True, preprocess_rule=lambda cfg: rule)
    deployment = SimpleNamespace(cfg={}, rule=rule, family=family)
    monkeypatch.setattr(streams, 'read_config', lambda *_: deployment)
    monkeypatch.setattr(streams, 'build', lambda _: None)
    monkeypatch.setattr(streams, 'load_weights', lambda _: weights())
    return benchmark


@pytest.mark.parametrize('voxels', [None, SimpleNamespace()])
def test_sweeps_that_cannot_be_used_are_refused_before_the_weights_load(voxels, monkeypatch):
    def damaged(path, *_, **__):
        raise DataError(f'{path}: no sweep')

    monkeypatch.setattr(streams, 'points_of', damaged)
    benchmark = benchmark_of_sweeps(SimpleNamespace(voxels=voxels), monkeypatch, pytest.fail)
    with pytest.raises(UsageError, match=r'a\.bin') as error:
        benchmark.load()
    assert error.value.exit_code == 2


def test_a_drive_has_a_frame_for_every_sweep(monkeypatch):
    rule = SimpleNamespace(voxels=SimpleNamespace())
    benchmark = benchmark_of_sweeps(rule, monkeypatch, lambda: None)
    frames = [Sweep(np.zeros((1, 5), np.float32))] * 40
    monkeypatch.setattr(streams, 'synthetic_drive', lambda count, *_, **__: frames[:count])
    monkeypatch.setattr(streams, 'points_of', lambda *_, **__: [('real', np.ones((2, 5), np.float32))])
    benchmark.load()
    assert [len(sample.points) for sample in benchmark.samples] == [2] * 30


@pytest.mark.matrix
def test_memory_is_measured_in_a_process_of_its_own(place, tmp_path):
    target = tmp_path / 'b.json'
    arguments = ['--engines', 'onnxruntime', '--onnx', place / 'deploy', '--json', target, '--max-iter', 1]
    assert run(place, *arguments) == 0
    (row,) = json.loads(target.read_text())['contenders']
    assert row['memory']['peak_mb'] >= row['memory']['resident_mb'] > 0 and row['ratio_to_torch'] is None


def test_openvino_runs_the_deploy_contract(place, tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    target = tmp_path / 'b.json'
    assert run(place, '--engines', 'torch,onnxruntime,openvino', '--json', target) == 0
    rows = {row['name']: row for row in json.loads(target.read_text())['contenders']}
    assert list(rows) == ['torch', 'onnxruntime deploy', 'openvino deploy']
    assert set(rows['openvino deploy']['parts_ms']) == {'backbone', 'embedding', 'head'}
    assert rows['openvino deploy']['memory']['peak_mb'] > 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--shape', '64'], '--shape: streaming models do not have it'),
        (['--engines', 'torch,tensorrt'], 'tensorrt'),
        (['--onnx', 'nowhere'], 'nowhere'),
    ],
)
def test_what_streaming_models_do_not_have_is_one_line(place, arguments, message, capsys):
    assert run(place, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and message in captured.err and captured.err.count('\n') == 1


def failing(source, folder, frame):
    """Copy files whose head loads, and then reads beyond an array in that frame of a drive (0 or 1)."""
    shutil.copytree(source, folder)
    model = onnx.load(folder / 'pts_head_memory.onnx')
    graph = model.graph
    for node in graph.node:
        node.input[:] = ['taken' if name == 'prev_exists' else name for name in node.input]
    for name, value in (('far', 1000), ('start', 1000 * (1 - frame))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))
    added = [
        onnx.helper.make_node('Cast', ['prev_exists'], ['number'], to=onnx.TensorProto.INT64),
        onnx.helper.make_node('Mul', ['number', 'far'], ['place']),
        onnx.helper.make_node('Add', ['place', 'start'], ['index']),
        onnx.helper.make_node('Gather', ['prev_exists', 'index'], ['taken'], name='out of range'),
    ]
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, folder / 'pts_head_memory.onnx')
    return folder


@pytest.mark.parametrize(
    'frame',
    [pytest.param(0, id='first frame'), pytest.param(1, id='with a memory', marks=pytest.mark.matrix)],
)
def test_files_that_load_and_cannot_run_are_left_out_with_the_reason(place, frame, tmp_path, capsys):
    bad, target = failing(place / 'deploy', tmp_path / 'bad', frame), tmp_path / 'b.json'
    arguments = ['--no-memory', '--onnx', place / 'deploy', bad]
    assert run(place, *arguments) == 1
    assert 'out of range' in capsys.readouterr().err
    assert run(place, *arguments, '--skip-refused', '--json', target) == 0
    result = json.loads(target.read_text())
    assert [row['file'] for row in result['contenders']] == ['', str(place / 'deploy')]
    (refused,) = result['refused']
    assert refused['file'] == str(bad) and 'out of range' in refused['reason']
    assert 'out of range' in capsys.readouterr().out


def test_when_every_file_is_refused_the_reasons_are_told(place, tmp_path, capsys):
    bad = failing(place / 'deploy', tmp_path / 'bad', 0)
    arguments = ['--engines', 'onnxruntime', '--no-memory', '--skip-refused', '--onnx', bad]
    assert run(place, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: nothing is left to measure') and error.count('\n') == 1
    assert f'onnxruntime deploy ({bad})' in error and 'out of range' in error


def test_samples_are_tried_in_the_order_of_the_drive_with_those_of_the_warm_up_first():
    # PETRv2 refuses a frame that is older than the one before it
    benchmark = SimpleNamespace(samples=[1, 0], args=SimpleNamespace(warmup=1))
    assert StreamBenchmark.first_samples(benchmark, 2) == [0, 1]


def test_the_clock_counts_a_nested_part_once_and_leaves_nothing_behind():
    class Model:
        def outer(self):
            return self.inner()

        def inner(self):
            return 7

    model = Model()
    with PartClock(dict(a=[(model, 'outer')], b=[(model, 'inner')])) as clock:
        assert model.outer() == 7
        assert clock.seconds['a'] > 0 == clock.seconds['b']
        assert model.inner() == 7 and clock.seconds['b'] > 0
    assert not vars(model)
    before = dict(clock.seconds)
    with clock:  # goes on
        assert model.inner() == 7 and clock.since(before)['b'] > 0
    original = Model.inner
    with PartClock(dict(a=[(Model, 'inner'), (model, 'inner')], b=[(Model, 'inner'), (model, 'inner')])):
        assert model.inner() == 7
    assert Model.inner is original and not vars(model)
