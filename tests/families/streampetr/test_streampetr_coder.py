"""The coder on the goldens' stored logits, and at its edges."""

import json

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_seeded as seeded
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.streampetr.coder import NMSFreeCoder

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
WIDE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def coder(**options):
    return NMSFreeCoder(PC_RANGE, **{'post_center_range': WIDE, **options})


@pytest.mark.parametrize('case', ['narrow', 'narrow_thr', 'thr0'])
def test_the_filters_give_the_goldens_rows_in_their_order(case):
    folder = seeded.require_golden()
    with np.load(folder / 'outputs.npz') as outputs, np.load(folder / 'decode_extra.npz') as extra:
        preds = {
            name: torch.from_numpy(outputs[f'f1_{name}']) for name in ('all_cls_scores', 'all_bbox_preds')
        }
        decoded = coder(**json.loads(str(extra[f'{case}_args']))).decode(preds)[0]
        np.testing.assert_array_equal(decoded['labels'].numpy(), extra[f'{case}_labels'])
        np.testing.assert_allclose(decoded['scores'].numpy(), extra[f'{case}_scores'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(decoded['bboxes'].numpy(), extra[f'{case}_bboxes'], rtol=0, atol=1e-5)


def test_one_query_gives_a_box_per_class():
    logits = torch.tensor([[2.0, 1.0, -9.0], [-9.0, -9.0, -9.0]])
    codes = torch.zeros(2, 10)
    codes[0, 7], codes[0, 0] = 1.0, 7.0
    decoded = coder(max_num=2, num_classes=3).decode_single(logits, codes)
    assert decoded['labels'].tolist() == [0, 1]
    assert decoded['bboxes'][:, 0].tolist() == [7.0, 7.0]
    torch.testing.assert_close(decoded['bboxes'][0, 3:7], torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_a_centre_on_the_limit_stays_and_one_beyond_goes():
    codes = torch.zeros(2, 10)
    codes[0, 0], codes[1, 0] = 61.2, 61.3
    assert len(coder(max_num=2, num_classes=1).decode_single(torch.zeros(2, 1), codes)['scores']) == 1


def test_more_boxes_than_there_are_gives_all_and_none_is_a_result():
    logits, codes = torch.full((2, 3), -9.0), torch.zeros(2, 10)
    assert len(coder(max_num=300, num_classes=3).decode_single(logits, codes)['scores']) == 6
    empty = coder(max_num=300, num_classes=3, score_threshold=0.5).decode_single(logits, codes)
    assert empty['bboxes'].shape == (0, 9)


def test_the_range_stays_what_the_config_says():
    one = coder(num_classes=1)
    one.decode_single(torch.zeros(2, 1), torch.zeros(2, 10))
    assert one.post_center_range == WIDE


def test_another_number_of_classes_than_that_of_the_logits_is_refused():
    with pytest.raises(ConfigError, match='num_classes=10, expected 3'):
        coder().decode_single(torch.zeros(2, 3), torch.zeros(2, 10))


def test_a_coder_without_a_range_is_refused():
    with pytest.raises(ConfigError, match='post_center_range'):
        NMSFreeCoder(PC_RANGE)
