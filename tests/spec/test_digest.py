"""A damaged file is found when it is opened; one that a tool has rewritten runs, with a note."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx_ir
import pytest
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from mmdeploy_ext import open_model
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.plain_pickle import fields
from mmdeploy_ext.cli import command
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.passes.fp16 import to_fp16
from mmdeploy_ext.proving import proof
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.spec import digest
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.results import GraphResult
from toy_atss import PICTURE, load_demo

FLOAT, FLOAT16, INT64, STRING = (
    getattr(onnx.TensorProto, name) for name in ('FLOAT', 'FLOAT16', 'INT64', 'STRING')
)
DEMO = Path(__file__).resolve().parents[2] / 'demo/atss_toy.onnx'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The demo's file with its digest."""
    path = tmp_path_factory.mktemp('whole') / 'm.onnx'
    files.save(files.load(DEMO), path)
    return path


@pytest.fixture
def damaged(whole, tmp_path):
    """The same with one flipped bit in a weight."""
    content, path = bytearray(whole.read_bytes()), tmp_path / 'damaged.onnx'
    weight = max(onnx.load(whole).graph.initializer, key=lambda tensor: len(tensor.raw_data)).raw_data
    content[content.index(weight) + len(weight) // 2] ^= 64
    path.write_bytes(content)
    return path


def test_another_tool_may_change_metadata_and_versions(whole, tmp_path):
    model = onnx.load(whole)
    model.ir_version, model.producer_name = 8, 'another tool'
    model.metadata_props.add(key='note', value='mine')
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(whole) == digest.state(tmp_path / 'm.onnx') == digest.WHOLE


def test_what_changes_a_graph_here_writes_another_digest(whole, tmp_path):
    model, halves, data = onnx.load(whole), tmp_path / 'h.onnx', tmp_path / 'd.onnx.data'
    files.save(to_fp16(model, read_metadata(whole).spec), halves, inputs=[whole])
    files.save_external(model, tmp_path / 'd.onnx', data)
    assert digest.state(halves) == digest.state(tmp_path / 'd.onnx') == digest.WHOLE
    stored = [
        next(json.loads(entry.value) for entry in onnx.load(path).metadata_props if entry.key == digest.KEY)
        for path in (whole, halves, tmp_path / 'd.onnx')
    ]
    assert stored[0]['sha256'] == stored[2]['sha256'] != stored[1]['sha256']
    with data.open('r+b') as stream:
        stream.seek(100)
        stream.write(b'\xff')
    assert digest.state(tmp_path / 'd.onnx') == digest.DAMAGED


def typed(tensor):
    """The same tensor with its values in the field of its type."""
    values = numpy_helper.to_array(tensor).ravel()
    return onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.tolist())


def small():
    """A model of each kind of message and of values that the digest reads."""
    z = onnx.helper.make_tensor_value_info('z', FLOAT, [2])
    body = onnx.helper.make_graph([onnx.helper.make_node('Identity', ['x'], ['z'])], 'body', [], [z])
    nodes = [
        onnx.helper.make_node('Mul', ['x', 'w'], ['y'], name='mul', doc_string='text'),
        onnx.helper.make_node('F', ['y'], ['v'], domain='d', pads=[0, 1], ratios=[0.5, 2.0], ratio=0.25),
        onnx.helper.make_node('If', ['c'], ['o'], then_branch=body, else_branch=body),
        onnx.helper.make_node('Constant', [], ['k'], value=onnx.helper.make_tensor('k', INT64, [2], [3, -4])),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, FLOAT, [axis, 2]) for name, axis in (('x', 'n'), ('o', None))
    ]
    weights = [
        numpy_helper.from_array(np.float32([1, 2]), 'w'),
        onnx.helper.make_tensor('h', FLOAT16, [2], [1.0, 2.0]),
        onnx.helper.make_tensor('s', STRING, [1], [b'ab']),
    ]
    inner, opsets = onnx.helper.make_node('Relu', ['a'], ['b'], name='r'), [onnx.helper.make_opsetid('', 17)]
    function = onnx.helper.make_function('d', 'F', ['a'], ['b'], [inner], opsets)
    graph = onnx.helper.make_graph(nodes, 'graph', ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, functions=[function])
    model.metadata_props.add(key='mm2onnx.family', value='"x"')
    return onnx.load_from_string(digest.sealed(model.SerializeToString()))


def in_another_order(model):
    graph = model.graph
    for entries in (graph.initializer, graph.node, *(node.attribute for node in graph.node)):
        kept = list(entries)
        del entries[:]
        entries.extend(reversed(kept))


def with_other_names(model):
    for node in (*model.graph.node, *model.functions[0].node):
        node.name, node.doc_string = node.name[::-1], ''
    model.graph.name = model.graph.doc_string = 'other'


def with_other_fields(model):
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(map(typed, weights[:1]))
    model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.float16([1, 2]), 'h'))
    model.graph.initializer.extend(weights[2:])
    constant = model.graph.node[-1].attribute[0]
    constant.t.CopyFrom(numpy_helper.from_array(np.int64([3, -4])))
    model.graph.node[0].domain = 'ai.onnx'


@pytest.mark.parametrize('habit', [in_another_order, with_other_names, with_other_fields])
def test_another_tool_may_store_the_same_graph_in_its_way(habit, tmp_path):
    model = small()
    habit(model)
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(tmp_path / 'm.onnx') == digest.WHOLE
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
    model.graph.initializer[0].float_data[:] = reversed(model.graph.initializer[0].float_data)
    model.graph.initializer[0].string_data[:] = [b'ba'] * len(model.graph.initializer[0].string_data)
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(tmp_path / 'm.onnx') == digest.DAMAGED


def beside_numbers(model, folder):
    model.graph.initializer[1].raw_data = np.float16([5, 6]).tobytes()


def beside_external_data(model, folder):
    weight = model.graph.initializer[0]
    (folder / 'w.data').write_bytes(weight.raw_data)
    weight.external_data.add(key='location', value='w.data')
    weight.raw_data, weight.data_location = np.float32([5, 6]).tobytes(), onnx.TensorProto.DEFAULT


@pytest.mark.parametrize('add', [beside_numbers, beside_external_data])
def test_a_tensor_with_values_at_two_places_is_damaged(add, tmp_path):
    model = small()
    add(model, tmp_path)
    (tmp_path / 'm.onnx').write_bytes(model.SerializeToString())
    assert digest.state(tmp_path / 'm.onnx') == digest.DAMAGED


def test_a_digest_of_another_version_is_unknown(tmp_path):
    model = small()
    (entry,) = (entry for entry in model.metadata_props if entry.key == digest.KEY)
    entry.value = json.dumps(json.loads(entry.value) | dict(version=digest.VERSION + 1, sha256=''))
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(tmp_path / 'm.onnx') == digest.UNKNOWN


def by_onnx_external(model, path):
    onnx.save(model, path, save_as_external_data=True, location='m.data', size_threshold=0)


def by_onnx_ir(model, path):
    onnx_ir.save(onnx_ir.from_proto(model), path, external_data='ir.data')


@pytest.mark.parametrize('write', [by_onnx_external, by_onnx_ir])
def test_a_writer_that_moves_the_weights_keeps_the_digest(write, whole, tmp_path):
    write(onnx.load(whole), tmp_path / 'm.onnx')
    assert digest.state(tmp_path / 'm.onnx') == digest.WHOLE
    (data,) = tmp_path.glob('*.data')
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert digest.state(tmp_path / 'm.onnx') == digest.DAMAGED
    data.write_bytes(content[:-8])
    assert digest.state(tmp_path / 'm.onnx') == digest.DAMAGED


def counted(model):
    """The text of a model without what does not count."""
    graphs = [model.graph, *(each.g for node in model.graph.node for each in node.attribute)]
    for graph in graphs:
        for name in ('name', 'doc_string', 'value_info', 'metadata_props', 'quantization_annotation'):
            graph.ClearField(name)
    for node in [*(node for graph in graphs for node in graph.node), *model.functions[0].node]:
        for name in ('name', 'doc_string', 'metadata_props'):
            node.ClearField(name)
        for attribute in node.attribute:
            attribute.ClearField('doc_string')
            if attribute.HasField('t'):
                attribute.t.ClearField('name')
                attribute.t.ClearField('doc_string')
    entries = [value for graph in graphs for value in (*graph.input, *graph.output, *graph.initializer)]
    for entry in (*entries, *model.functions):
        for name in ('doc_string', 'metadata_props'):
            entry.ClearField(name)
    for name in ('doc_string', 'value_info', 'metadata_props'):
        model.functions[0].ClearField(name)
    return str(model)


def test_every_flipped_bit_is_found_except_in_names_and_texts(tmp_path):
    model, path = small(), tmp_path / 'm.onnx'
    content, expected, whole = model.SerializeToString(), counted(small()), 0
    for number, _, begin, end in fields(content):
        for bit in range(begin * 8, end * 8, 13) if number in (digest.GRAPH, digest.FUNCTIONS) else ():
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            if digest.state(path) == digest.DAMAGED:
                continue
            whole += 1
            with contextlib.suppress(DecodeError):  # a name that is no text
                assert counted(onnx.load_from_string(bytes(flipped))) == expected, bit
    assert 0 < whole < 80


def older(model, data, bits=0):
    """Give a model a digest as mm2onnx 0.3.0 writes it."""
    graph = bytearray(model.graph.SerializeToString())
    graph[-1] ^= bits
    entry = next(entry for entry in model.metadata_props if entry.key == digest.KEY)
    sha256 = hashlib.sha256(graph).hexdigest()
    entry.value = json.dumps(dict(sha256=sha256, bytes=len(graph), data=data))


@pytest.mark.parametrize(('bits', 'state'), [(0, digest.WHOLE), (1, digest.DAMAGED)])
def test_a_digest_of_0_3_0_is_read(bits, state, whole, tmp_path):
    model = onnx.load(whole)
    older(model, [], bits)
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(tmp_path / 'm.onnx') == state


@pytest.mark.parametrize('place', ['/dev/zero', 'pipe', 'link', '../m.data'])
@pytest.mark.parametrize('by', ['digest of 0.3.0', 'weights'])
def test_a_file_whose_weights_are_a_device_or_elsewhere_is_refused(place, by, whole, tmp_path, capsys):
    folder, model = tmp_path / 'models', onnx.load(whole)
    folder.mkdir()
    os.mkfifo(folder / 'pipe')
    (tmp_path / 'm.data').write_bytes(bytes(1 << 20))
    (folder / 'link').symlink_to('../m.data')
    if by == 'weights':
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.ClearField('raw_data')
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key='location', value=place)
    else:
        older(model, [place])
    path = folder / 'm.onnx'
    path.write_bytes(model.SerializeToString())
    for words in (['info', str(path)], ['run', str(path), str(PICTURE), '--out', str(tmp_path / 'out')]):
        assert command.main(words) == 2 and f'{path}: ' in capsys.readouterr().err


def test_a_file_of_others_gets_no_digest(tmp_path):
    model = onnx.load(DEMO)
    del model.metadata_props[:]
    files.save(model, tmp_path / 'm.onnx')
    assert not onnx.load(tmp_path / 'm.onnx').metadata_props
    assert digest.state(tmp_path / 'm.onnx') == digest.state(PICTURE) == digest.UNKNOWN


def test_a_damaged_file_is_not_used(damaged, tmp_path, capsys):
    with pytest.raises(ModelFileError, match='is damaged'):
        open_model(damaged)
    kept = str(tmp_path / 'fixed.onnx')
    for words in (
        ['run', str(damaged), str(PICTURE), '--out', str(tmp_path / 'out')],
        ['info', str(damaged)],
        ['graph', 'set-shape', str(damaged), 'input=1x3x64x64', '--output', kept],
    ):
        assert command.main(words) == 2 and f'{damaged}: ' in capsys.readouterr().err
    assert not Path(kept).exists()


@pytest.mark.parametrize('edited', [False, True])
def test_a_damaged_file_is_not_proven_unless_it_was_edited_on_purpose(damaged, edited):
    file = proof.open_file(str(damaged))
    parts = dict(level_1=lambda file: ([], [], lambda: GraphResult('', 1, True)), prepared=lambda: None)
    found = proof.check(load_demo('atss'), [file], {}, {}, Claims(edited), {}, **parts)
    failed = [check.name for check in found.results.checks if not check.passed and 'digest' in check.name]
    notes = [note for note in found.verdict.notes if digest.KEY in note]
    assert (len(failed), len(notes)) == ((0, 1) if edited else (1, 0))


def test_a_rewritten_file_runs_with_a_note(whole, tmp_path, capsys):
    path, model = tmp_path / 'm.onnx', onnx.load(whole)
    model.graph.node.add(op_type='Identity', input=['input'], output=['unused'])
    onnx.save(model, path)
    assert digest.state(path) == digest.REWRITTEN
    assert command.main(['run', str(path), str(PICTURE), '--out', str(tmp_path)]) == 0
    assert f'note: {path}: ' in capsys.readouterr().err
    with open_model(path) as opened, open_model(whole) as expected:
        picture = cv2.imread(str(PICTURE))
        np.testing.assert_array_equal(opened(picture).bboxes_xyxy, expected(picture).bboxes_xyxy)
