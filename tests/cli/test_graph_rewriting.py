"""`graph.py replace, simplify, fp16, reduce`: files, exit statuses and bad input."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mmdeploy_ext.cli.graph_app import main
from refusals import refused
from toy_chain import chain

RULES = Path(__file__).parent / 'rules'
SAME = {
    'replace': ['--rule', str(RULES / 'leaky_as_max.py')],
    'simplify': [],
    'fp16': ['--keep-fp32', 'max*', '--tolerance', '0.05'],
}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('graphs') / 'chain.onnx'
    onnx.save(chain(16), path)
    return path


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def left_over(folder):
    return [path.name for path in Path(folder).iterdir() if '.part' in path.name]


@pytest.mark.parametrize('command', SAME)
def test_a_file_is_rewritten_proven_and_the_input_not_touched(command, file, tmp_path, capsys):
    before, target, found = digest(file), tmp_path / 'out.onnx', tmp_path / 'found.json'
    words = [command, str(file), '--output', str(target), '--json', str(found), *SAME[command]]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert 'EQUAL ON 2 INPUTS' in out and 'cosine' in out
    assert digest(file) == before
    onnx.checker.check_model(onnx.load(target), full_check=True)
    content = json.loads(found.read_text())
    assert content['proof']['equal'] and len(content['proof']['outputs']) == 2
    again = tmp_path / 'again.onnx'
    assert main([command, str(target), '--output', str(again), *SAME[command]]) == 0
    assert len(onnx.load(again).graph.node) == len(onnx.load(target).graph.node)


def test_other_numbers_are_exit_status_one_and_nothing_is_written(file, tmp_path, capsys):
    target, found = tmp_path / 'out.onnx', tmp_path / 'found.json'
    words = ['replace', str(file), '--output', str(target), '--rule', str(RULES / 'leaky_as_relu.py')]
    assert main([*words, '--json', str(found)]) == 1
    assert 'NOT EQUAL' in capsys.readouterr().out
    assert not target.exists() and not left_over(tmp_path)
    assert json.loads(found.read_text())['output'] is None
    assert main([*words, '--no-proof']) == 0
    assert 'NOT COMPARED' in capsys.readouterr().out and target.exists()


def test_given_inputs_are_used(file, tmp_path, capsys):
    np.savez(tmp_path / 'in.npz', x=np.ones((3, 8), np.float32))
    words = ['simplify', file, '--output', tmp_path / 'out.onnx', '--inputs', tmp_path / 'in.npz']
    assert main([str(word) for word in words]) == 0
    assert '3x8' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['replace', '--rule', 'no.py'], 'no.py'),
        (['fp16', '--keep-fp32', 'LeakyRelo'], 'LeakyRelo.*LeakyRelu'),
        (['simplify', '--size', 'M=3'], 'M'),
        (['simplify', '--inputs', 'no.npz'], 'no.npz'),
        (['reduce', '--check', 'nan'], '--check'),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(words, message, file, tmp_path, capsys):
    error = refused(capsys, main, words[0], file, '--output', tmp_path / 'out', *words[1:])
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_reduce_leaves_a_folder_that_runs_and_names_the_node(tmp_path, capsys):
    path, target, found = tmp_path / 'bad.onnx', tmp_path / 'reduced', tmp_path / 'found.json'
    onnx.save(chain(24, overflow=11), path)
    assert main(['reduce', str(path), '--check', 'nan', '--output', str(target), '--json', str(found)]) == 0
    assert 'square Mul: half, half -> squared' in capsys.readouterr().out
    content = json.loads(found.read_text())
    assert [node['name'] for node in content['nodes']] == ['square'] and content['stopped'] is None
    assert not left_over(tmp_path)
    assert subprocess.run([sys.executable, target / 'run.py'], capture_output=True).returncode == 0
    assert 'already exists' in refused(capsys, main, 'reduce', path, '--check', 'nan', '--output', target)
