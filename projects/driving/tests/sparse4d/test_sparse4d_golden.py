"""Sparse4D with the goldens' seeded weights: every tensor of upstream's run, on its frames.

Tolerances: ../shared/golden/sparse4d/INDEX.md. The matrix has three frames of the head alone, and ten of the
whole model, whose memory keeps the rows that upstream kept.
"""

import functools
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet3d.models import build_model

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import sparse4d_golden as golden
from dev.seeded.sparse4d import sparse4d_weights
from mm2onnx_driving.layers import sparse_instances
from mm2onnx_driving.layers.sparse_instances import CENTRE, Features
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.taps import collect_taps
from sparse4d_border_points import nearest_decision

MODEL = 'projects/configs/_base_/models/sparse4dv3_r50.py'
LOGITS, METRES, OTHER, FEATURES, SCORES, OPERATOR = 1e-3, 5e-3, 1e-3, 1e-3, 2e-4, 5e-4
STATE = (
    'cached_feature',
    'cached_anchor',
    'metas',
    'mask',
    'confidence',
    'temp_confidence',
    'kept',
    'instance_id',
    'prev_id',
)
"""Attributes of the bank that a frame changes."""


@pytest.fixture(scope='module')
def model():
    model = build_model(load_config(MODEL).model).eval()
    model.load_state_dict(sparse4d_weights(model.state_dict()), strict=True)
    return model


@pytest.mark.matrix
def test_the_filled_weights_are_those_of_the_goldens(model):
    golden.arrays('head_only.npz')
    assert golden.fill_sha256(model.state_dict()) == golden.FILL_SHA256


def same_anchors(anchor, expected):
    np.testing.assert_allclose(anchor[..., CENTRE], expected[..., CENTRE], rtol=0, atol=METRES)
    np.testing.assert_allclose(anchor[..., 3:], expected[..., 3:], rtol=0, atol=OTHER)


def same(tensor, expected, tolerance):
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=tolerance)


def same_boxes(result, expected, by_id=True):
    """The same boxes in any order of near ties: each of the expected ones has its own partner."""
    differences = np.abs(result['boxes_3d'].numpy()[None] - expected['boxes_3d'][:, None]).max(-1)
    differences[expected['labels_3d'][:, None] != result['labels_3d'].numpy()[None]] = np.inf
    partner = differences.argmin(1)
    assert len(set(partner)) == len(partner) and differences.min(1).max() <= METRES
    same(result['scores_3d'].numpy()[partner], expected['scores_3d'], SCORES)
    same(result['cls_scores'], expected['cls_scores'], SCORES)
    if by_id:
        assert (result['instance_ids'].numpy()[partner] == expected['instance_ids']).all()


@pytest.mark.matrix
def test_the_head_alone(model):
    head = model.head
    head.instance_bank.reset()
    shapes, starts = sparse_instances.map_sizes(golden.SIZES, 6)
    for case in range(3):
        expected = golden.frame_arrays('head_only.npz', f'h{case}_')
        features = Features(golden.features(case), shapes, starts)
        with torch.no_grad(), collect_taps() as taps:
            outputs = head(features, golden.metas(int(expected['frame'])))
            (result,) = head.post_process(outputs)
        same_anchors(outputs['prediction'][-1][0], expected['prediction_5'])
        for layer in range(5):
            same_anchors(taps[f'refined_{layer + 1}'][0, ::9], expected['prediction_0to4_slice'][layer])
        if case:  # a first frame takes nothing over, and chooses nothing by these logits
            same(taps['first_logits'][0, ::3], expected['classification_0_slice'], LOGITS)
        same(outputs['classification'][-1][0], expected['classification_5'], LOGITS)
        same(outputs['quality'][-1][0], expected['quality_5'], LOGITS)
        same_boxes(result, expected)


def forced(stored, checked):
    """Return a `best_rows` that takes upstream's rows, after a check of its own choice as a set."""

    def best_rows(scores, count):
        rows = stored.pop(0)[None]
        border = scores.topk(count, 1).values[:, -1:]
        assert (scores.gather(1, rows) >= border - checked).all() and rows.unique().numel() == count
        return scores.gather(1, rows), rows

    return best_rows


@pytest.fixture(scope='module')
def features_of(model):
    """Returns the features of a frame, which are made once."""

    @functools.cache
    def extract(frame):
        with torch.no_grad():
            return model.extract_feat(golden.pictures(frame))

    return extract


def run_frame(model, features, frame, expected, choice):
    """Run a frame with points at borders of pictures on upstream's side; return outputs and taps."""
    memory = vars(model.head.instance_bank)
    before = {name: memory[name] for name in STATE}

    def run(points):
        memory.update(before)
        choosing = mock.patch.object(sparse_instances, 'best_rows', choice())
        with torch.no_grad(), collect_taps() as taps, points.answering(), choosing:
            outputs = model.head(features, golden.metas(frame))
        return outputs, taps, {name: memory[name] for name in STATE}

    def distance(results):
        return float(np.abs(results[0]['prediction'][-1][0].numpy() - expected['prediction_015'][-1]).sum())

    (outputs, taps, after), _ = nearest_decision(run, distance)
    memory.update(after)
    return outputs, taps


def drive(model):
    """Yield each frame of the goldens and what is stored of it, after the resets of the drive."""
    inputs = golden.arrays('inputs.npz')
    for frame in range(golden.count_frames()):
        if inputs[f'f{frame}_reset'] or frame == 0:
            model.head.instance_bank.reset()
        yield frame, golden.frame_arrays('outputs.npz', f'f{frame}_')


@pytest.mark.matrix
def test_every_frame_of_the_whole_model(model, features_of):
    instance_bank = model.head.instance_bank
    for frame, expected in drive(model):
        is_first = instance_bank.cached_anchor is None
        rows = [] if is_first else [expected['update_topk_index']]
        rows = [torch.from_numpy(values.astype(np.int64)) for values in (*rows, expected['cache_topk_index'])]
        features = features_of(frame)
        outputs, taps = run_frame(model, features, frame, expected, lambda rows=rows: forced([*rows], 1e-3))
        (result,) = model.head.post_process(outputs)
        same(features.rows[0, ::197, ::16], expected['feature_slice'], 2e-5)
        for stored, layer in zip(expected['prediction_015'], (0, 1, 5), strict=True):
            same_anchors(taps[f'refined_{layer + 1}'][0], stored)
        if not is_first:
            same(taps['first_logits'][0], expected['classification_0'], LOGITS)
        same(outputs['classification'][-1][0], expected['classification_5'], LOGITS)
        same(outputs['quality'][-1][0], expected['quality_5'], LOGITS)
        same(taps['instance_feature'][0, :, ::16], expected['instance_feature_slice'], FEATURES)
        same(taps['dfa'][0, ::9, ::8], expected['dfa5_out_slice'], OPERATOR)
        assert instance_bank.mask is None or bool(instance_bank.mask) == bool(expected['mask'])
        same_anchors(instance_bank.cached_anchor[0], expected['cached_anchor'])
        same(instance_bank.cached_feature[0, :, ::16], expected['cached_feature_slice'], FEATURES)
        same(instance_bank.confidence[0], expected['confidence'], SCORES)
        same(instance_bank.temp_confidence[0], expected['temp_confidence'], SCORES)
        assert (outputs['instance_id'][0].numpy() == expected['instance_id']).all()
        assert (instance_bank.instance_id[0].numpy() == expected['state_instance_id']).all()
        assert instance_bank.prev_id == expected['prev_id']
        same_boxes(result, expected)
