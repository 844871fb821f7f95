"""What a file says of its export is compared with the config, and taken from neither side in silence."""

import dataclasses
from types import SimpleNamespace as Names

import pytest

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.proving.provenance import (
    asked_checks,
    companion_checks,
    hash_checks,
    refuse_other_settings,
    settings_check,
    stale_reason,
)
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.tensors import GraphSpec
from toy_atss import CONFIG

ABSENT = {'model.test_cfg.nms.class_agnostic': True}
OTHER = {'model.test_cfg.score_thr': 0.3}
REPLACED = {f'model.test_cfg.nms.{key}': value for key, value in dict(_delete_=True, iou_thr=0.7).items()}


@pytest.mark.parametrize(
    ('overrides', 'detail'),
    [
        (ABSENT, 'model.test_cfg.nms.class_agnostic: the file says True, the config has no such key; if'),
        (OTHER, 'model.test_cfg.score_thr: the file says 0.3, the config 0.05; if that is intended, pass'),
        ({'model.test_cfg.score_thr': 0.05}, ''),
        ({'data.workers_per_gpu': 0, 'data.no_such_key': 1}, ''),  # not of the model
        (ABSENT | {'model.test_cfg': dict(score_thr=0.05)}, ''),  # mmcv drops the first of the two
        (
            {'model.test_cfg': dict(score_thr=0.05)} | ABSENT,
            'model.test_cfg.nms.class_agnostic: the file says',
        ),
        (REPLACED, 'model.test_cfg.nms._delete_: the file says True'),
    ],
)
def test_an_override_that_the_config_lacks_is_not_taken_from_the_file(overrides, detail):
    check = settings_check(load_config(CONFIG), overrides)
    assert check.passed == (not detail) and check.detail.startswith(detail)
    given = settings_check(load_config(CONFIG, dict(overrides)), overrides)
    assert given.passed


STALE = {
    'list of class names': dict(classes=('a', 'b')),
    'config': dict(config_sha256='0'),
    'checkpoint': dict(checkpoint_sha256='0'),
    'export options': dict(options=dict(opset=7)),
    'versions': dict(versions={}),
    'source of its classes': dict(model_classes=({},)),
    'contract': dict(spec=GraphSpec('m', (), ())),
}


def test_a_file_of_another_export_is_stale():
    recorded = read_metadata('demo/atss_toy.onnx')
    overridden = dict(recorded.options, cfg_options=dict(data=1))  # settings_check compares these
    assert stale_reason(recorded, dataclasses.replace(recorded, options=overridden)) == ''
    for title, changes in STALE.items():
        assert (
            stale_reason(recorded, dataclasses.replace(recorded, **changes)) == f'stale: the {title} changed'
        )
    older = dataclasses.replace(recorded, versions={}, model_classes=({},))  # whose classes were elsewhere
    assert stale_reason(recorded, older) == 'stale: the versions changed'


def test_options_are_compared_one_by_one():
    checks = asked_checks(dict(opset=17, keep_fp32=['a']), dict(opset=17, keep_fp32=('a',), form='raw'))
    assert [check.passed for check in checks] == [True, True, False]


def test_another_checkpoint_is_a_note_where_the_graphs_are_equal_and_a_failure_elsewhere():
    detector, recorded = Names(checkpoint_sha256='a', config_sha256='b'), dict(checkpoint='a', config='c')
    for is_same, passed, count in ((True, [True], 1), (False, [True, False], 0)):
        checks, notes = hash_checks(detector, recorded, is_same)
        assert [check.passed for check in checks] == passed and len(notes) == count


def test_companions_are_compared_word_by_word(tmp_path):
    (tmp_path / 'a').write_text('x: 1\ny: 2\n')
    (tmp_path / 'b').write_text('x: 1\n')
    expected = dict(a='x: 1\ny: 2\n', b='x: 1\ny: 2\n', c='')
    assert [check.passed for check in companion_checks(tmp_path, expected)] == [True, False, False]


def test_tools_that_are_instructed_by_a_file_refuse_other_settings_with_what_to_type():
    words = r'm\.onnx: was exported with other settings .* pass --cfg-options model\.test_cfg\.nms\.class_ag'
    with pytest.raises(UsageError, match=words):
        refuse_other_settings(load_config(CONFIG), ABSENT, 'm.onnx')
    refuse_other_settings(load_config(CONFIG, dict(ABSENT)), ABSENT, 'm.onnx')
