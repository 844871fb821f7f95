"""Level 1 holds a file to a fresh export, edits of ours included."""

import onnx
import pytest
import torch
from onnx import helper

from marking import in_suite
from mmdeploy_ext.cli import graph_app, verify_app
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving import ladder
from mmdeploy_ext.runtime.detect import make_feeds, prepare
from proofs import check_files, level_1_alone, samples_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy
from verdicts import checks_of, graphs_of, preprocessing_of


@pytest.fixture(scope='module')
def deployment():
    return load_toy()


@pytest.fixture(scope='module')
def path(deployment, tmp_path_factory):
    return export_toy(deployment, tmp_path_factory.mktemp('level') / 'full.onnx')


@pytest.fixture(scope='module')
def raw_path(deployment, tmp_path_factory):
    """Return a file of a third of the nodes."""
    return export_toy(deployment, tmp_path_factory.mktemp('level') / 'raw.onnx', form='raw')


def judged(deployment, model, tmp_path, **options):
    target = str(tmp_path / 'judged.onnx')
    onnx.save(model, target)
    verdict = check_files(deployment, target, [('picture', read_image(PICTURE))], **options)
    return graphs_of(verdict)[0]


def infer_picture(backend):
    """Return the outputs of the test picture in each place of the batch."""
    feeds = make_feeds(prepare(backend.metadata, read_image(PICTURE)), backend.metadata)
    return backend.infer(backend.select_inputs(feeds))


def test_a_fresh_export_is_equal_and_says_so_first(deployment, raw_path, tmp_path):
    graph = judged(deployment, onnx.load(raw_path), tmp_path)
    assert graph.equal and graph.text == f'equal to a fresh export ({graph.nodes:,} nodes)'


@pytest.mark.matrix
def test_exact_group_normalisation_is_an_option_of_the_file_and_held_to_every_node(deployment, tmp_path):
    path = export_toy(deployment, tmp_path / 'raw.onnx', form='raw', group_norm='exact')
    model = onnx.load(path)
    assert 'InstanceNormalization' not in {node.op_type for node in model.graph.node}
    assert read_metadata(path).options['group_norm'] == 'exact'
    assert judged(deployment, model, tmp_path).equal
    (means, *_) = (node for node in model.graph.node if node.op_type == 'ReduceMean')
    next(entry for entry in means.attribute if entry.name == 'axes').ints[:] = [-2]
    graph = judged(deployment, model, tmp_path)
    assert not graph.passed and means.name in graph.text


@pytest.mark.parametrize(
    ('chosen', 'expected'),
    [({}, 'exact'), (dict(group_norm='operator'), 'operator'), (dict(precision='fp16'), '')],
)
def test_group_normalisation_is_exact_by_default_where_the_backbone_has_it(deployment, chosen, expected):
    """The toy has it in its head: there the operator is enough, and files stay as they were."""
    options, model = deployment.family.choose(opset=17, **chosen), torch.nn.Module()
    resolved = deploy.resolve(options, deployment.model, deployment.rule)
    assert resolved.group_norm == chosen.get('group_norm', '')
    model.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.GroupNorm(2, 8))
    assert deploy.resolve(options, model, deployment.rule).group_norm == expected


def test_differences_are_named_by_node_module_and_value(deployment, raw_path, tmp_path):
    model = onnx.load(raw_path)
    node = next(node for node in model.graph.node if node.op_type == 'Conv' and 'atss_cls' in node.name)
    next(entry for entry in node.attribute if entry.name == 'pads').ints[:] = [0, 0, 2, 2]
    graph = judged(deployment, model, tmp_path)
    assert graph.text.startswith('1 node differs from a fresh export: ')
    assert node.name in graph.text and 'atss_cls' in graph.differences[0]
    assert 'pads: [0, 0, 2, 2], reference [1, 1, 1, 1]' in graph.text
    graph = judged(deployment, model, tmp_path, edited=True)
    assert graph.passed and not graph.equal and graph.text == 'edited, not compared'


RULE = """
def pattern(op, x):
    return op.Relu(x)


def replacement(op, x):
    return op.Clip(x, op.Constant(value_float=0.0))
"""
EDITS = {
    'simplify': ['simplify', '--no-proof'],
    'replace': ['replace', '--rule', '{rule}', '--no-proof'],
    'set-shape': ['set-shape', 'B=1', 'H=128', 'W=160'],
}


@pytest.mark.suite('set-shape', 'replace')
@pytest.mark.parametrize('command', in_suite(EDITS, 'replace', 'set-shape'))
def test_commands_of_ours_are_recorded_and_have_to_be_accepted(deployment, raw_path, tmp_path, command):
    name, *options = EDITS[command]
    target, rule = str(tmp_path / 'edited.onnx'), tmp_path / 'rule.py'
    rule.write_text(RULE)
    words = [option.format(rule=rule) for option in options]
    assert graph_app.main([name, raw_path, '--output', target, *words]) == 0
    assert read_metadata(target).edits == (command,)
    model = onnx.load(target)
    graph = judged(deployment, model, tmp_path)
    assert not graph.passed
    assert graph.text == f'edited by graph {command}: give --edited to compare the outputs alone'
    assert judged(deployment, model, tmp_path, edited=True).text == 'edited, not compared'


def test_a_file_whose_sizes_were_fixed_is_one_of_that_size(deployment, raw_path, tmp_path):
    target = str(tmp_path / 'fixed.onnx')
    assert graph_app.main(['set-shape', raw_path, 'input=2x3x128x160', '--output', target]) == 0
    verdict = check_files(deployment, target, [('picture', read_image(PICTURE))], edited=True)
    assert all(check.passed for check in checks_of(verdict)), checks_of(verdict)
    assert verdict.subject['shape'] == 'fixed' and preprocessing_of(verdict).passed
    with OnnxRuntimeBackend(target) as backend:
        shape = {name: array.shape for name, array in infer_picture(backend).items()}['cls_score_0']
    assert shape[0] == 2
    fields = read_metadata(target)
    assert fields.options['dynamic'] is False and fields.preprocess.size == (128, 160)


def verdict_of(tmp_path, capsys, *words):
    """Return the exit status of verify.py, its last lines, and the verdict as JSON."""
    found = tmp_path / 'verdict.json'
    status = verify_app.main([CONFIG, CHECKPOINT, *words, '--json', str(found)])
    return status, capsys.readouterr().out, read_json(found)


def test_a_file_that_was_exported_with_another_threshold_is_refused_by_the_name_of_the_setting(
    tmp_path, capsys, monkeypatch
):
    deployment = deploy.load(CONFIG, CHECKPOINT, {'model.test_cfg.score_thr': 0.3})
    path = export_toy(deployment, tmp_path / 'm.onnx', form='raw', dynamic=False, height=128, width=160)
    monkeypatch.setattr(ladder, 'prove', level_1_alone)
    status, out, content = verdict_of(tmp_path, capsys, path)
    assert status == 1 and content['verdict'] == 'not proven'
    assert 'model.test_cfg.score_thr: the file says 0.3, the config 0.05' in out
    assert '--cfg-options model.test_cfg.score_thr=0.3' in out


@pytest.mark.matrix
def test_what_was_asked_for_decides_not_what_the_file_says(tmp_path, capsys, path, monkeypatch):
    monkeypatch.setattr(ladder, 'prove', level_1_alone)
    status, out, _ = verdict_of(
        tmp_path, capsys, path, '--postprocess', 'raw', '--opset-version', '18', '--max-candidates', '0'
    )
    assert status == 1
    assert 'form as asked for: asked for raw, the file says full' in out
    assert 'opset as asked for: asked for 18, the file says 17' in out


@pytest.mark.matrix
def test_an_edited_file_is_proven_by_its_outputs(tmp_path, capsys, path, monkeypatch):
    model = onnx.load(path)
    model.graph.node.append(helper.make_node('Neg', ['input'], ['unread'], name='unread'))
    target = str(tmp_path / 'm.onnx')
    onnx.save(model, target)
    with monkeypatch.context() as patch:
        patch.setattr(ladder, 'prove', level_1_alone)
        status, out, content = verdict_of(tmp_path, capsys, target)
    assert status == 1 and 'NOT PROVEN: graph: 1 node differs from a fresh export: unread' in out
    with samples_alone():
        status, out, content = verdict_of(tmp_path, capsys, target, '--edited')
    assert status == 0 and out.startswith('file           edited, not compared')
    assert content['verdict'] == 'proven'
