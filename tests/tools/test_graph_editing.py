"""`graph.py`'s commands that show and edit, also on files of other projects."""

import json
import os

import numpy as np
import onnx
import pytest

from mmdeploy_ext.cli.graph_app import main
from mmdeploy_ext.graph.io import files
from scn_files import golden_model
from toy_graphs import FOREIGN, conv_net, foreign

EDITS = {
    'picodet': (
        ['extract', '{file}', '--nodes', 'p2o.Conv.5', 'p2o.Add.2?'],
        ['rename', '{file}', '--name-nodes', '--prefix', 'p/'],
    ),
    'yolox': (
        ['cut', '{file}', '--inputs', '687', '--outputs', '691'],
        ['insert-outputs', '{file}', '683', '687'],
    ),
    'yunet': (
        ['cut', '{file}', '--outputs', 'cls_8', 'kps_32'],
        ['rename', '{file}', '--tensor', 'input', 'image', '--node', 'Conv_0', 'stem'],
        ['set-shape', '{file}', 'input=1,3,h,w'],
    ),
    'yunet_dynamic': (['set-shape', '{file}', 'input=2x3x64x96'],),
}


@pytest.fixture
def net(tmp_path):
    onnx.save_model(conv_net(), tmp_path / 'net.onnx')
    return str(tmp_path / 'net.onnx')


@pytest.mark.suite('yolox', 'yunet', 'yunet_dynamic')
@pytest.mark.parametrize('name', FOREIGN)
def test_files_of_other_projects_are_edited_and_proven(name, tmp_path, capsys):
    source = foreign(name)
    with open(source, 'rb') as stream:
        before = stream.read()
    for number, words in enumerate(EDITS[name]):
        argv = [word.format(file=source) for word in words]
        first, second, found = tmp_path / f'{number}.onnx', tmp_path / f'{number}b.onnx', tmp_path / 'x.json'
        assert main([*argv, '--output', str(first), '--prove', '--json', str(found)]) == 0
        content = json.loads(found.read_text())
        assert content['changed'] and content['proof']['equal'] and content['output'] == str(first)
        assert 'EQUAL ON 1 INPUT: ' in capsys.readouterr().out
        onnx.checker.check_model(str(first), full_check=True)
        again = [word.format(file=first) for word in words]
        assert main([*again, '--output', str(second)]) == 0
        assert 'nothing changed' in capsys.readouterr().out and first.read_bytes() == second.read_bytes()
    with open(source, 'rb') as stream:
        assert stream.read() == before


@pytest.mark.parametrize('name', FOREIGN)
def test_files_of_other_projects_are_shown_and_drawn(name, tmp_path, capsys):
    source = foreign(name)
    assert main(['show', source, '--nodes', 'Conv']) == 0
    assert main(['tree', source, '--depth', '2', '--json', str(tmp_path / 'tree.json')]) == 0
    assert (
        main(
            ['draw', source, '--output', str(tmp_path / 'x.svg'), '--node', '#300'[: 4 - (name != 'picodet')]]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert 'operators: ' in out and '\nmodel ' in out and 'nodes drawn' in out
    assert json.loads((tmp_path / 'tree.json').read_text())['tree']['nodes'] == len(
        onnx.load(source).graph.node
    )


def test_shapes_fill_in_the_flops_of_an_open_graph(tmp_path, capsys):
    onnx.save_model(conv_net(('batch', 3, 'h', 'w')), tmp_path / 'open.onnx')
    before = (tmp_path / 'open.onnx').read_bytes()
    assert main(['show', str(tmp_path / 'open.onnx')]) == 0
    assert '3 nodes more with open shapes' in capsys.readouterr().out
    assert main(['show', str(tmp_path / 'open.onnx'), '--shape', 'batch=1', 'h=8', 'w=8']) == 0
    assert '3.97 kFLOPs' in capsys.readouterr().out
    assert main(['tree', str(tmp_path / 'open.onnx'), '--shape', 'images=1x3x8x8']) == 0
    assert '3.97 kFLOPs' in capsys.readouterr().out and (tmp_path / 'open.onnx').read_bytes() == before


def test_two_halves_are_merged_and_proven(net, tmp_path, capsys):
    top, bottom, both = (str(tmp_path / f'{name}.onnx') for name in ('top', 'bottom', 'both'))
    assert main(['cut', net, '--outputs', 'b', '--output', top]) == 0
    assert main(['cut', net, '--inputs', 'b', '--output', bottom]) == 0
    assert main(['rename', bottom, '--tensor', 'b', 'features', '--output', str(tmp_path / 'r.onnx')]) == 0
    argv = ['merge', top, str(tmp_path / 'r.onnx'), '--connect', 'b', 'features', '--output', both, '--prove']
    assert main(argv) == 0
    assert 'EQUAL ON 1 INPUT: 1 outputs equal bit for bit' in capsys.readouterr().out
    assert [value.name for value in files.load(both).graph.output] == ['scores']


def test_unequal_numbers_are_exit_status_one(net, tmp_path, capsys, monkeypatch):
    """The proof itself is proven: a pass that changes a weight is caught."""
    from mmdeploy_ext.graph.passes import extract

    def faulty(model, names):
        result = onnx.ModelProto.FromString(model.SerializeToString())
        bias = onnx.numpy_helper.to_array(result.graph.initializer[4]) + np.float32(1e-3)
        result.graph.initializer[4].CopyFrom(onnx.numpy_helper.from_array(bias, 'fc.bias'))
        return result

    monkeypatch.setattr(extract, 'insert_outputs', faulty)
    assert main(['insert-outputs', net, 'b', '--prove', '--output', str(tmp_path / 'y.onnx')]) == 1
    assert 'NOT EQUAL: 1 of 1 outputs differ' in capsys.readouterr().out


def test_a_model_over_the_limit_is_written_with_its_weights_beside_it(net, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, 'PROTOBUF_LIMIT', 400)
    monkeypatch.setattr(files, 'SMALLEST_EXTERNAL', 100)
    argv = ['rename', net, '--prefix', 'p/', '--output', str(tmp_path / 'y.onnx'), '--prove']
    assert main(argv) == 0
    assert 'weights beside it' in capsys.readouterr().out and (tmp_path / 'y.onnx.data').is_file()
    monkeypatch.undo()
    assert (
        main(['rename', str(tmp_path / 'y.onnx'), '--name-nodes', '--output', str(tmp_path / 'z.onnx')]) == 0
    )
    (tmp_path / 'y.onnx.data').unlink()
    assert (
        main(['rename', str(tmp_path / 'y.onnx'), '--name-nodes', '--output', str(tmp_path / 'w.onnx')]) == 2
    )
    assert 'y.onnx.data, which is not there' in capsys.readouterr().err


def broken(folder, kind) -> str:
    """Write a file that something is wrong with."""
    model, path = conv_net(), folder / f'{kind}.onnx'
    if kind == 'cycle':
        model.graph.node[0].input[0] = 'd'
    if kind == 'newer':
        model.opset_import[0].version = 999
    content = model.SerializeToString()
    path.write_bytes(content[: len(content) // 2] if kind == 'truncated' else content)
    return str(path)


BAD = {
    'a truncated file': (['cut', '{truncated}', '--outputs', 'a'], 'not a readable ONNX file'),
    'a cycle': (['insert-outputs', '{cycle}', 'a'], 'is a cycle'),
    'a cycle to draw': (['draw', '{cycle}'], 'is a cycle'),
    'a newer opset': (['rename', '{newer}', '--prefix', 'p/'], 'opset 999'),
    'no file': (['set-shape', '{folder}/none.onnx', 'batch=1'], 'no such ONNX file'),
    'an unknown node': (['extract', '{net}', '--nodes', '/stem/Con'], 'did you mean /stem/Conv'),
    'an unknown tensor': (['cut', '{net}', '--inputs', 'q'], "no tensor 'q'"),
    'a cut without inputs': (
        ['cut', '{net}', '--inputs', 'scores', '--outputs', 'b'],
        'also need the graph inputs',
    ),
    'nothing to cut': (['cut', '{net}'], 'by --inputs or --outputs'),
    'nothing to extract': (['extract', '{net}'], 'by --nodes or --tensors'),
    'nothing to rename': (['rename', '{net}'], 'say what'),
    'a name given twice': (['rename', '{net}', '--tensor', 'a', 'q', '--tensor', 'a', 'r'], 'two new ones'),
    'sizes of no input': (['set-shape', '{net}', 'image=1x3x8x8'], 'did you mean images'),
    'one file to merge': (['merge', '{net}'], 'at least two files'),
    'names that do not count': (['merge', '{net}', '{net}', '--names', 'a'], 'got 1 names for 2 files'),
    'an output for two inputs': (
        ['merge', '{net}', '{net}', '--connect', 'b', 'x', '--connect', 'b', 'y'],
        'one output is given two inputs',
    ),
    'the same file twice': (['merge', '{net}', '{net}', '--names', 'a', 'b'], 'both give scores'),
    'sparse options': (['draw', '{net}', '--depth', '2'], 'goes with --node'),
    'steps below none': (['draw', '{net}', '--node', 'a', '--depth', '-1'], '--depth -1: expected 0 or more'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, net, tmp_path, capsys):
    words, message = BAD[case]
    paths = {kind: broken(tmp_path, kind) for kind in ('truncated', 'cycle', 'newer')}
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    target = tmp_path / ('y.svg' if words[0] == 'draw' else 'y.onnx')
    argv = [word.format(net=net, folder=tmp_path, **paths) for word in words]
    assert main([*argv, '--output', str(target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1
    assert words[0] == 'merge' or argv[1] in error or '--depth' in message
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_the_input_is_never_written_over(net, capsys):
    with open(net, 'rb') as stream:
        before = stream.read()
    for argv in (['rename', net, '--prefix', 'p/'], ['cut', net, '--outputs', 'b'], ['merge', net, net]):
        assert main([*argv, '--output', net]) == 2
        assert 'is the input; it is never overwritten' in capsys.readouterr().err
    with open(net, 'rb') as stream:
        assert stream.read() == before


def test_weights_that_are_missing_do_not_keep_a_graph_from_being_shown(tmp_path, capsys):
    path = tmp_path / 'x.onnx'
    options = dict(save_as_external_data=True, location='x.data', size_threshold=0)
    onnx.save_model(conv_net(baked=True), path, **options)
    assert main(['show', str(path)]) == 0
    assert ' 3.97 kFLOPs\n' in capsys.readouterr().out  # the sizes of a Reshape are among the data
    (tmp_path / 'x.data').unlink()
    assert main(['show', str(path)]) == 0 and main(['tree', str(path)]) == 0
    assert '2 nodes more with open shapes' in capsys.readouterr().out


def test_a_newer_opset_is_still_shown(tmp_path, capsys):
    assert main(['show', broken(tmp_path, 'newer'), '--nodes']) == 0
    assert 'ai.onnx 999' in capsys.readouterr().out


def test_a_baked_size_is_exit_status_one_and_no_trial_writes_it(tmp_path, capsys):
    onnx.save_model(conv_net(baked=True), tmp_path / 'net.onnx')
    argv = [
        'set-shape',
        str(tmp_path / 'net.onnx'),
        'images=batch,3,8,8',
        '--output',
        str(tmp_path / 'y.onnx'),
    ]
    assert main(argv) == 1
    assert 'a size is baked into its constants' in capsys.readouterr().err
    assert not (tmp_path / 'y.onnx').exists()
    assert main([*argv, '--no-trial']) == 0 and (tmp_path / 'y.onnx').exists()


def bare_output(path):
    """Write a graph whose output has a type and no shape, as some exporters do; ONNX Runtime takes it."""
    model = conv_net()
    model.graph.output[0].type.tensor_type.ClearField('shape')
    onnx.save_model(model, path)
    return str(path)


@pytest.mark.parametrize('words', [['rename', '--name-nodes'], ['insert-outputs', 'y']], ids=' '.join)
def test_an_output_without_a_shape_gets_the_one_that_is_inferred(words, tmp_path):
    source, target = bare_output(tmp_path / 'x.onnx'), tmp_path / 'y.onnx'
    names = [name for node in onnx.load(source).graph.node for name in node.output]
    words = [names[0] if word == 'y' else word for word in words]
    assert main([words[0], source, *words[1:], '--output', str(target), '--prove']) == 0
    assert onnx.load(target).graph.output[0].type == conv_net().graph.output[0].type
    assert not onnx.load(source).graph.output[0].type.tensor_type.HasField('shape')


def test_an_input_without_a_shape_is_refused_by_name(tmp_path, capsys):
    model = conv_net()
    model.graph.input[0].type.tensor_type.ClearField('shape')
    onnx.save_model(model, tmp_path / 'x.onnx')
    target = tmp_path / 'y.onnx'
    assert main(['rename', str(tmp_path / 'x.onnx'), '--name-nodes', '--output', str(target)]) == 2
    assert 'of images; graph.py set-shape' in capsys.readouterr().err and not target.exists()
    words = ['set-shape', str(tmp_path / 'x.onnx'), 'images=1x3x8x8', '--output', str(target)]
    assert main(words) == 0 and target.exists()


@pytest.mark.parametrize(
    ('name', 'words', 'node', 'output'),
    [
        ('yunet', 'input=batch,3,320,320', 'Reshape_93 (Reshape) makes 1x3200x1 ', 'cls_8'),
        ('yunet', 'input=4x3x320x320', 'Reshape_93 (Reshape) makes 1x6400x1 ', 'cls_8'),
        ('yolox', 'images=b,3,416,416', 'Reshape_405 (Reshape) makes 1x85x5408 ', 'output'),
    ],
)
def test_a_batch_that_constants_fold_into_another_axis_is_refused_by_node(
    name, words, node, output, tmp_path, capsys
):
    target = tmp_path / 'y.onnx'
    argv = ['set-shape', foreign(name), words, '--output', str(target)]
    assert main(argv) == 1 and not target.exists()
    message = capsys.readouterr().err
    assert node in message and f'output {output} mixes the images' in message
    assert main([*argv, '--no-trial']) == 0 and target.exists()


def test_a_sparse_graph_is_renamed_and_not_cut(tmp_path, capsys):
    source, target = str(tmp_path / 'x.onnx'), str(tmp_path / 'y.onnx')
    onnx.save_model(golden_model('bevfusion.plain.xyz'), source)
    assert main(['rename', source, '--node', 'conv0', 'first', '--output', target]) == 0
    assert onnx.load(target).graph.node[0].name == 'first' and main(['check-scn', target]) == 0
    capsys.readouterr()
    for words in (
        ['cut', source, '--outputs', '5'],
        ['insert-outputs', source, '5'],
        ['set-shape', source, '0=1x5'],
    ):
        assert main([*words, '--output', str(tmp_path / 'z.onnx')]) == 2
        assert 'libspconv dialect' in capsys.readouterr().err
    assert not (tmp_path / 'z.onnx').exists()
