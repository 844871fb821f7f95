"""What a file says of its export is compared with the config, and taken from neither side in silence."""

import dataclasses

import pytest
from onnx import TensorProto, helper

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.graph.edits import judged_by_inputs, repeat
from mmdeploy_ext.proving.provenance import (
    companion_checks,
    refuse_other_settings,
    settings_check,
    unequal_entries,
)
from mmdeploy_ext.proving.results import Case, Check, GraphResult, PreprocessingResult
from mmdeploy_ext.proving.verdict import Verdict
from toy_atss import CONFIG

ABSENT = {'model.test_cfg.nms.class_agnostic': True}
OTHER = {'model.test_cfg.score_thr': 0.3}


@pytest.mark.parametrize(
    ('overrides', 'detail'),
    [
        (ABSENT, 'model.test_cfg.nms.class_agnostic: the file says True, the config has no such key; where'),
        (OTHER, 'model.test_cfg.score_thr: the file says 0.3, the config 0.05; where that is meant, give'),
        ({'model.test_cfg.score_thr': 0.05}, ''),
        ({'data.workers_per_gpu': 0, 'data.no_such_key': 1}, ''),  # not of the model
    ],
)
def test_an_override_that_the_config_lacks_is_not_taken_from_the_file(overrides, detail):
    check = settings_check(load_config(CONFIG), overrides)
    assert check.passed == (not detail) and check.detail.startswith(detail)
    given = settings_check(load_config(CONFIG, dict(overrides)), overrides)
    assert given.passed


def test_tools_that_are_instructed_by_a_file_refuse_other_settings_with_what_to_type():
    words = r'm\.onnx: was exported with other settings .* give --cfg-options model\.test_cfg\.nms\.class_ag'
    with pytest.raises(UsageError, match=words):
        refuse_other_settings(load_config(CONFIG), ABSENT, 'm.onnx')
    refuse_other_settings(load_config(CONFIG, dict(ABSENT)), ABSENT, 'm.onnx')


@pytest.mark.parametrize(
    ('written', 'detail'),
    [
        (dict(limit=1), 'nms: the file says nothing, the config None'),
        (dict(limit=1, nms=None, more=None), 'more: the file says None, the config nothing'),
        (dict(limit=True, nms=None), 'limit: the file says True, the config 1'),
        (dict(nms=None, limit=1), ''),
    ],
)
def test_a_fact_that_is_none_is_there_and_true_is_not_one(written, detail):
    assert unequal_entries(written, dict(limit=1, nms=None)) == detail


@pytest.mark.parametrize('arguments', [dict(tensors=3), dict(prefix=[1]), dict(nodes={'#0': None})])
def test_damaged_arguments_of_a_record_are_no_traceback(arguments):
    node = helper.make_node('Relu', ['x'], ['y'], name='relu')
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in 'xy']
    model = helper.make_model(helper.make_graph([node], 'g', ends[:1], ends[1:]))
    with pytest.raises(ModelFileError, match=r'mm2onnx\.edits'):
        repeat(model, [dict(command='rename', arguments=arguments, versions={})])


def test_a_text_beside_the_graphs_that_is_no_utf8_is_told_so(tmp_path):
    (tmp_path / 'a.yaml').write_bytes(b'thr: \xff\n')
    (check,) = companion_checks(tmp_path, {'a.yaml': 'thr: 1\n'})
    assert not check.passed and "expected 'thr: 1'" in check.detail


def test_a_rule_that_was_typed_weakens_the_verdict_and_one_that_is_exact_does_not():
    def edit(*rules, named=()):
        return dict(command='replace', arguments=dict(rules=list(rules), named=list(named)), versions={})

    rule = 'y = Relu(x) -> y = Clip(x, 0.0, 20.0)'
    simplified = dict(command='simplify', arguments={}, versions={})
    assert judged_by_inputs([simplified, edit(named=['grid-sample', 'hard-swish'])]) == []
    reasons = judged_by_inputs([edit(rule), edit(named=['double-cast'])])
    assert reasons == [f'replace: {rule}', 'replace: double-cast']
    graph = GraphResult('', 9, True, by_inputs=', '.join(reasons[:1]), note='both after replace')
    verdict = Verdict({}, graphs=[graph], structure=[Check('x', True)], cases=[Case('other', '1', False)] * 5)
    verdict.preprocessing = PreprocessingResult(('a.jpg',))
    assert verdict.title == f'PROVEN ON 5 INPUTS (replace: {rule})'
    assert graph.text == 'equal to a fresh export (9 nodes); both after replace'
    assert not dataclasses.replace(graph, equal=False).passed
