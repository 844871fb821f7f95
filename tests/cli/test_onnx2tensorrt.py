"""`onnx2tensorrt.py`: engines of the toys without a GPU, what is refused and how."""

import json

import onnx
import pytest

from mmdeploy_ext.cli.tensorrt_app import main
from mmdeploy_ext.engines.tensorrt.record import read_record
from refusals import refused
from toy_atss import REPO, export_toy, load_toy
from toy_engines import package, two_outputs

DEMO = REPO / 'demo/atss_toy.onnx'
SIZES = ['--shapes', 'B=1/2/4']


@pytest.fixture
def net(tmp_path):
    onnx.save_model(two_outputs(batch='B'), tmp_path / 'net.onnx')
    return str(tmp_path / 'net.onnx')


def test_the_toy_atss_is_built_for_a_chosen_architecture(tmp_path, capsys):
    package()
    raw, engine, layers = tmp_path / 'raw.onnx', tmp_path / 'm.engine', tmp_path / 'layers.json'
    export_toy(load_toy(), raw, form='raw', dynamic=False)
    argv = [str(raw), '--output', str(engine), '--sm', '86', '--fp16', '--layers', str(layers)]
    assert main(argv) == 0
    assert 'SM 86' in capsys.readouterr().out
    record = read_record(engine)
    assert set(record.layers['CONVOLUTION']) == {'float16'}
    assert {port.dtype for port in (*record.inputs, *record.outputs)} == {'float32'}
    content = json.loads(layers.read_text())
    convolutions = [x['outputs'] for x in content['network'] if x['kind'] == 'CONVOLUTION']
    assert len(convolutions) == 63 and all(outputs == ['float16'] for outputs in convolutions)
    assert main([str(engine)]) == 0
    assert 'cls_score_0' in capsys.readouterr().out


def test_the_file_is_refused_by_node_before_a_package_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    line = refused(capsys, main, DEMO, '--sm', '86')
    assert 'NonMaxSuppression' in line and '--max-candidates' in line


def test_check_needs_no_package(net, capsys, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert main([net, '--check']) == 0
    assert '2 nodes, all supported by TensorRT-RTX' in capsys.readouterr().out
    assert '--sm 17: tensorrt-rtx builds for 75 80' in refused(
        capsys, main, net, '--check', '--sm', '17', '86'
    )
    assert 'TensorRT is not installed; tensorrt-rtx: make env-tensorrt' in refused(
        capsys, main, net, '--sm', '86', *SIZES
    )
