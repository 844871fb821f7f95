"""`graph.py diff` with config and checkpoint: exit statuses, what it prints and writes."""

import json

import onnx
import pytest

import toy_faults
from mmdeploy_ext.cli.graph_app import main
from toy_atss import CHECKPOINT, CONFIG, toy_file


@pytest.mark.matrix
def test_a_right_file_is_exit_status_zero(capsys):
    assert main(['diff', CONFIG, CHECKPOINT, toy_file('raw'), '--no-fresh']) == 0
    assert 'EQUAL' in capsys.readouterr().out


def test_a_wrong_file_is_exit_status_one_with_node_module_json_and_page(tmp_path, capsys):
    model, node = toy_faults.plant(onnx.load(toy_file('raw')), 'weight')
    onnx.save(model, tmp_path / 'broken.onnx')
    target, report = tmp_path / 'found.json', tmp_path / 'report'
    command = ['diff', CONFIG, CHECKPOINT, str(tmp_path / 'broken.onnx'), '--no-fresh']
    assert main([*command, '--json', str(target), '--report', str(report)]) == 1
    out = capsys.readouterr().out
    assert 'DIFFERS' in out and node in out and 'backbone.layer2.0.conv2' in out
    content = json.loads(target.read_text())
    assert not content['equal'] and content['first']['node'] == node
    assert json.loads((report / 'diff.json').read_text()) == content
    assert f'<code>{node}</code>' in (report / 'report.html').read_text()
