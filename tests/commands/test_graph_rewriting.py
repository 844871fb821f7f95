"""`graph.py replace, simplify, fp16, reduce`: files, exit statuses and bad input."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mmdeploy_ext.cli.graph_app import main
from mmdeploy_ext.graph.io import files
from scn_files import golden_model
from toy_chain import chain

RULES = Path(__file__).parent / 'rules'
SAME = {
    'replace': ['--rule', str(RULES / 'leaky_as_max.py')],
    'simplify': [],
    'fp16': ['--keep-fp32', 'max*', '--tolerance', '0.05'],
}
ALL = {**SAME, 'reduce': ['--check', 'nan']}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('graphs') / 'chain.onnx'
    onnx.save(chain(16), path)
    return path


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def left_over(folder):
    return [path.name for path in Path(folder).iterdir() if '.part' in path.name]


def refused(capsys, *words):
    """Run the tool, expect exit status 2 and one line, and return it."""
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    return error


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
    words = [
        'replace',
        str(file),
        '--output',
        str(target),
        '--rule',
        str(RULES / 'leaky_as_relu.py'),
    ]
    assert main([*words, '--json', str(found)]) == 1
    assert 'NOT EQUAL' in capsys.readouterr().out
    assert not target.exists() and not left_over(tmp_path)
    assert json.loads(found.read_text())['output'] is None
    assert main([*words, '--no-proof']) == 0
    assert 'NOT COMPARED' in capsys.readouterr().out and target.exists()


def test_an_operator_that_the_engine_does_not_know_names_the_file_and_the_way_on(tmp_path, capsys):
    node = helper.make_node('Mine', ['x'], ['y'], domain='some.where')
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in 'xy']
    opsets = [helper.make_opsetid('', 17), helper.make_opsetid('some.where', 1)]
    graph = helper.make_graph([node], 'g', ends[:1], ends[1:])
    source, target = tmp_path / 'mine.onnx', tmp_path / 'out.onnx'
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), source)
    error = refused(capsys, 'simplify', source, '--output', target)
    assert str(source) in error and '--no-proof' in error and not target.exists()
    assert main(['simplify', str(source), '--output', str(target), '--no-proof']) == 0


def test_given_inputs_are_used(file, tmp_path, capsys):
    np.savez(tmp_path / 'in.npz', x=np.ones((3, 8), np.float32))
    words = ['simplify', file, '--output', tmp_path / 'out.onnx', '--inputs', tmp_path / 'in.npz']
    assert main([str(word) for word in words]) == 0
    assert '3x8' in capsys.readouterr().out
    np.savez(tmp_path / 'bad.npz', x=np.ones((3, 7), np.float32))
    words[-1] = tmp_path / 'bad.npz'
    assert main([str(word) for word in words]) == 1
    assert "feed 'x'" in capsys.readouterr().err


@pytest.mark.parametrize('command', ALL)
def test_sparse_graphs_are_refused_by_their_name(command, tmp_path, capsys):
    onnx.save_model(golden_model('bevfusion.int8.xyz'), tmp_path / 'sparse.onnx')
    words = [command, tmp_path / 'sparse.onnx', '--output', tmp_path / 'out', *ALL[command]]
    assert 'libspconv dialect' in refused(capsys, *words)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['replace', '--rule', 'no.py'], 'no.py: no such file'),
        (['fp16', '--keep-fp32', 'LeakyRelo'], "'LeakyRelo': fits.*did you mean LeakyRelu"),
        (['simplify', '--tolerance', '-1'], '--tolerance -1'),
        (['simplify', '--size', 'N'], "--size 'N'"),
        (['simplify', '--size', 'N=²'], "--size 'N=²'"),
        (['simplify', '--size', 'M=3'], 'has no such axis'),
        (['replace', '--rule', 'demo/toy.jpg'], 'toy.jpg: is no Python file'),
        (['reduce', '--check', 'nan', '--timeout', 'nan'], '--timeout nan'),
        (['simplify', '--inputs', 'no.npz'], 'no such file'),
        (['simplify', '--inputs', 'no.npz', '--seed', '1'], 'leave one out'),
        (['reduce', '--check', 'nann'], 'did you mean nan'),
        (['reduce', '--check', 'nan'], 'does not show it'),
        (['reduce', '--check', 'false'], 'says no to the whole model'),
        (['reduce', '--check', 'sleep 60 &&', '--timeout', '0.1'], 'was stopped'),
        (['reduce', '--check', 'differs no.onnx'], 'no.onnx: no such ONNX file'),
        (['reduce', '--check', 'differs demo/atss_toy.onnx'], 'demo/atss_toy.onnx: does not take the inputs'),
        (['reduce', '--check', 'nan', '--max-checks', '0'], '--max-checks 0'),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(words, message, file, tmp_path, capsys):
    import re

    error = refused(capsys, words[0], file, '--output', tmp_path / 'out', *words[1:])
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
    assert 'is there already' in refused(capsys, 'reduce', path, '--check', 'nan', '--output', target)


@pytest.mark.parametrize('command', ['replace', 'fp16'])
def test_a_model_that_one_message_cannot_hold_gets_external_data(command, tmp_path, monkeypatch):
    """The limit of 2 GiB is lowered to that of this model; the whole way is the real one."""
    model = chain(16)
    weight = np.eye(8, 40000, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, 'large_weight'))
    model.graph.node.add(op_type='MatMul', name='wide', input=['t14', 'large_weight'], output=['z'])
    model.graph.output.append(onnx.helper.make_tensor_value_info('z', 1, ['N', 40000]))
    path, target = tmp_path / 'large.onnx', tmp_path / 'out.onnx'
    monkeypatch.setattr(files, 'PROTOBUF_LIMIT', 500_000)
    files.save(model, path)
    assert main([command, str(path), '--output', str(target), *SAME[command]]) == 0
    assert (tmp_path / 'out.onnx.data').is_file() and target.stat().st_size < 500_000
    assert len(files.load(target).graph.output) == 2
