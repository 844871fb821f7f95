"""Level 1 holds a file to a fresh export, edits of ours included."""

from unittest import mock

import onnx
import pytest
import torch
from onnx import helper

from mmdeploy_ext.cli import graph_app, verify_app
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.proving import file_checks, pictures
from mmdeploy_ext.proving.pictures import compare_graph
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.metadata import read_metadata
from proofs import check_files, level_1_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy, toy_file
from verdicts import checks_of, graphs_of, preprocessing_of


@pytest.fixture(scope='module')
def detector():
    return load_toy()


def judged(detector, model, tmp_path, **options):
    target = str(tmp_path / 'judged.onnx')
    onnx.save(model, target)
    verdict = check_files(detector, target, [('picture', read_image(PICTURE))], **options)
    return graphs_of(verdict)[0]


@pytest.mark.matrix
def test_exact_group_normalisation_is_an_option_of_the_file_and_held_to_every_node(detector, tmp_path):
    path = export_toy(detector, tmp_path / 'raw.onnx', form='raw', group_norm='exact')
    model = onnx.load(path)
    assert 'InstanceNormalization' not in {node.op_type for node in model.graph.node}
    assert read_metadata(path).options['group_norm'] == 'exact'
    assert judged(detector, model, tmp_path).equal
    (means, *_) = (node for node in model.graph.node if node.op_type == 'ReduceMean')
    next(entry for entry in means.attribute if entry.name == 'axes').ints[:] = [-2]
    graph = judged(detector, model, tmp_path)
    assert not graph.passed and means.name in graph.text


def test_a_dynamic_file_is_held_to_a_smaller_trace_and_to_its_own_where_they_differ(detector):
    options = detector.family.choose(form='raw', height=288, width=384, dynamic=True)
    model, other = (onnx.load(toy_file('raw')) for _ in range(2))
    other.graph.node[0].op_type = 'Ceil'
    fresh, seen = {(288, 384): model, (224, 288): other}, []

    def traced(detector, options, picture, size):
        return lambda: seen.append(size) or fresh[size]

    with mock.patch.object(file_checks, 'of_images', traced):
        for file, sizes in ((other, [(224, 288)]), (model, [(224, 288), (288, 384)])):
            seen.clear()
            assert compare_graph(detector, file, options, None).equal
            assert seen == sizes


@pytest.mark.parametrize(
    ('chosen', 'expected'),
    [({}, 'exact'), (dict(group_norm='operator'), 'operator'), (dict(precision='fp16'), '')],
)
def test_group_normalisation_is_exact_by_default_where_the_backbone_has_it(detector, chosen, expected):
    """The toy has it in its head: there the operator is enough, and files stay as they were."""
    options, model = detector.family.choose(opset=17, **chosen), torch.nn.Module()
    resolved = detectors.resolve(options, detector.model, detector.rule)
    assert resolved.group_norm == chosen.get('group_norm', '')
    model.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.GroupNorm(2, 8))
    assert detectors.resolve(options, model, detector.rule).group_norm == expected


def test_differences_are_named_by_node_module_and_value(detector, tmp_path):
    model = onnx.load(toy_file('raw'))
    node = next(node for node in model.graph.node if node.op_type == 'Conv' and 'atss_cls' in node.name)
    next(entry for entry in node.attribute if entry.name == 'pads').ints[:] = [0, 0, 2, 2]
    graph = judged(detector, model, tmp_path)
    assert node.name in graph.text and 'pads' in graph.text and 'atss_cls' in graph.differences[0]
    graph = judged(detector, model, tmp_path, edited=True)
    assert graph.passed and not graph.equal
    assert graph.text.startswith('edited: ') and node.name in graph.text and 'pads' in graph.text


def test_a_file_that_another_tool_rewrote_is_told_how_to_compare_its_outputs(detector, tmp_path):
    def notes(path):
        return check_files(detector, path, [('picture', read_image(PICTURE))]).notes

    model, path = onnx.load(toy_file('raw')), str(tmp_path / 'rewritten.onnx')
    output = model.graph.output[0].name
    producer = next(node for node in model.graph.node if output in node.output)
    producer.output[[*producer.output].index(output)] = 'before'
    model.graph.node.append(helper.make_node('Identity', ['before'], [output]))
    onnx.save(model, path)
    assert any('--edited' in note for note in notes(path))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, path)
    assert not any('--edited' in note for note in notes(path)), 'its outputs cannot be compared'


RULE = """
def pattern(op, x):
    return op.Relu(x)


def replacement(op, x):
    return op.Clip(x, op.Constant(value_float=0.0))
"""


def test_commands_of_ours_are_recorded_and_have_to_be_accepted(detector, tmp_path):
    target, rule = str(tmp_path / 'edited.onnx'), tmp_path / 'rule.py'
    rule.write_text(RULE)
    words = [toy_file('raw'), '--output', target, '--rule', str(rule), '--no-proof']
    assert graph_app.main(['replace', *words]) == 0
    assert read_metadata(target).edits == ('replace',)
    graph = judged(detector, onnx.load(target), tmp_path)
    assert not graph.passed and '--edited' in graph.text


def test_a_file_whose_sizes_were_fixed_is_one_of_that_size(detector, tmp_path):
    target = str(tmp_path / 'fixed.onnx')
    assert graph_app.main(['set-shape', toy_file('raw'), 'input=2x3x128x160', '--output', target]) == 0
    assert read_metadata(target).edits == ('set-shape',)
    verdict = check_files(detector, target, [('picture', read_image(PICTURE))], edited=True)
    assert all(check.passed for check in checks_of(verdict)), checks_of(verdict)
    assert verdict.subject['shape'] == 'fixed' and preprocessing_of(verdict).passed
    (output, *_) = onnx.load(target).graph.output
    assert output.type.tensor_type.shape.dim[0].dim_value == 2
    fields = read_metadata(target)
    assert fields.options['dynamic'] is False and fields.preprocess.size == (128, 160)


def test_what_was_asked_for_decides_not_what_the_file_says(capsys, monkeypatch):
    monkeypatch.setattr(pictures, 'prove', level_1_alone)
    asked = ('--postprocess', 'full', '--opset-version', '18')
    assert verify_app.main([CONFIG, CHECKPOINT, toy_file('raw'), *asked]) == 1
    out = capsys.readouterr().out
    assert 'form as requested' in out and 'opset as requested' in out
