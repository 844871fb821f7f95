"""What a file says of its export is compared with the config, and taken from neither side in silence."""

import dataclasses

import pytest

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.proving.provenance import (
    refuse_other_settings,
    settings_check,
    stale_reason,
)
from toy_atss import CONFIG

ABSENT = {'model.test_cfg.nms.class_agnostic': True}
OTHER = {'model.test_cfg.score_thr': 0.3}
REPLACED = {f'model.test_cfg.nms.{key}': value for key, value in dict(_delete_=True, iou_thr=0.7).items()}


@pytest.mark.parametrize(
    ('overrides', 'detail'),
    [
        (ABSENT, 'model.test_cfg.nms.class_agnostic: the file says True, the config has no such key; where'),
        (OTHER, 'model.test_cfg.score_thr: the file says 0.3, the config 0.05; where that is meant, give'),
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


def test_another_name_of_a_class_makes_a_file_stale():
    recorded = read_metadata('demo/atss_toy.onnx')
    assert stale_reason(recorded, recorded) == ''
    renamed = dataclasses.replace(recorded, classes=('other', *recorded.classes[1:]))
    assert stale_reason(recorded, renamed) == 'stale: another list of class names'


def test_tools_that_are_instructed_by_a_file_refuse_other_settings_with_what_to_type():
    words = r'm\.onnx: was exported with other settings .* give --cfg-options model\.test_cfg\.nms\.class_ag'
    with pytest.raises(UsageError, match=words):
        refuse_other_settings(load_config(CONFIG), ABSENT, 'm.onnx')
    refuse_other_settings(load_config(CONFIG, dict(ABSENT)), ABSENT, 'm.onnx')
