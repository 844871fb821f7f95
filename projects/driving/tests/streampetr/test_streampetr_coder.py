"""Boxes of logits and codes: the coder and the runtime against the published coder, and at their edges."""

import json

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_golden as seeded
from mm2onnx_driving.common.runtime.query_boxes import QueryBoxFacts
from mm2onnx_driving.streampetr.model import NMSFreeCoder
from mm2onnx_driving.streampetr.runtime import decode

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
WIDE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def coder(**options):
    return NMSFreeCoder(PC_RANGE, **{'post_center_range': WIDE, **options})


@pytest.mark.parametrize('case', ['narrow', 'narrow_thr', 'thr0'])
def test_coder_and_runtime_give_the_published_rows(case):
    with np.load(seeded.IN_REPOSITORY / 'decode.npz') as stored:
        outputs = [stored[name] for name in ('all_cls_scores', 'all_bbox_preds')]
        settings = json.loads(str(stored[f'{case}_args']))
        boxes, scores, labels = (stored[f'{case}_{name}'] for name in ('bboxes', 'scores', 'labels'))
    tensors = dict(zip(('all_cls_scores', 'all_bbox_preds'), map(torch.from_numpy, outputs), strict=True))
    decoded = coder(**settings).decode(tensors)[0]
    np.testing.assert_array_equal(decoded['labels'].numpy(), labels)
    np.testing.assert_allclose(decoded['scores'].numpy(), scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(decoded['bboxes'].numpy(), boxes, rtol=0, atol=1e-5)
    found = decode(*outputs, QueryBoxFacts(**{'score_threshold': None, 'num_classes': 10, **settings}))
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)
    boxes[:, 2] -= boxes[:, 5] / 2
    # near-ties down to 3e-8 may swap, so both are compared in the order of x
    for one, two in ((found.boxes, boxes), (found.labels, labels)):
        one, two = one[np.argsort(found.boxes[:, 0])], two[np.argsort(boxes[:, 0])]
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


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
