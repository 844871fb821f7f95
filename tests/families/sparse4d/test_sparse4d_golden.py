"""Sparse4D with the goldens' seeded weights: every tensor of upstream's run, on its frames.

Tolerances: ../shared/golden/sparse4d/INDEX.md. The suite has one frame of the head alone; the matrix three,
and the ten frames of the whole model, whose memory keeps the rows that upstream kept.
"""

import functools
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet3d.models import build_head, build_model

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import sparse4d_golden as golden
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.core.taps import collect_taps
from mmdeploy_ext.models.sparse4d import bank, steps
from mmdeploy_ext.models.sparse4d.aggregation import Features
from mmdeploy_ext.models.sparse4d.steps import CENTRE
from mmdeploy_ext.proving.levels.memory_rows import pair_rows
from mmdeploy_ext.seeded.sparse4d import for_width, sparse4d_weights
from sparse4d_border_points import nearest_decision

MODEL = 'projects/configs/_base_/models/sparse4dv3_r50.py'
LOGITS, METRES, OTHER, FEATURES, SCORES, OPERATOR = 1e-3, 5e-3, 1e-3, 1e-3, 2e-4, 5e-4
LOOSE_SCORES = 0.05
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
    model.load_state_dict(sparse4d_weights(model.state_dict(), golden.PREFIX), strict=True)
    return model


def test_the_filled_weights_are_those_of_the_goldens(model):
    golden.arrays('head_only.npz')
    if golden.PREFIX:
        pytest.skip('skipped: the checksum is that of the shipped set')
    assert golden.fill_sha256(model.state_dict()) == golden.FILL_SHA256


@pytest.mark.parametrize(('width', 'share'), [(176, 1.0), (704, 1.0), (1408, 0.5)])
def test_seeded_weights_read_the_maps_of_wider_pictures_more_weakly(width, share):
    weights = {
        'head.layers.0.output_proj.weight': torch.ones(1),
        'head.layers.2.attn.out_proj.weight': torch.ones(1),
    }
    assert [float(tensor) for tensor in for_width(weights, width).values()] == [share, 1.0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'operation_order': ['gnn', 'refine', 'norm']}, 'the last one refine'),
        ({'decoder.num_output': 901}, r'num_output=901.*num_anchor=900'),
        ({'instance_bank.anchor': [[0.0] * 10] * 900}, r'anchor has \(900, 10\).*rows of 11'),
        ({'instance_bank.anchor': [[0.0] * 11] * 3}, r'num_temp_instances=600 of 3 anchors'),
    ],
)
def test_a_head_that_cannot_run_is_refused_by_name(change, message):
    cfg = load_config(MODEL, {f'model.head.{key}': value for key, value in change.items()})
    with pytest.raises(ConfigError, match=message):
        build_head(cfg.model.head)


@pytest.mark.parametrize(('rows', 'instances'), [(3, 3), (4, 4), (9, 4)])
def test_instances_are_the_first_anchors_at_most_num_anchor_as_upstream(rows, instances):
    anchors, handler = np.arange(rows * 11.0).reshape(rows, 11), dict(type='SparseBox3DKeyPointsGenerator')
    small = bank.InstanceBank(4, 8, anchors.tolist(), handler, num_temp_instances=2)
    assert small.num_anchor == instances and small.instance_feature.shape == (instances, 8)
    np.testing.assert_array_equal(small.anchor, anchors[:instances])


def test_a_detector_refuses_several_augmentations(model):
    with pytest.raises(DataError, match='tests one augmentation, and got 2'):
        model([torch.zeros(1)] * 2)


def same_anchors(anchor, expected):
    np.testing.assert_allclose(anchor[..., CENTRE], expected[..., CENTRE], rtol=0, atol=METRES)
    np.testing.assert_allclose(anchor[..., 3:], expected[..., 3:], rtol=0, atol=OTHER)


def same(tensor, expected, tolerance):
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=tolerance)


def same_boxes(result, expected, by_id=True):
    """The same boxes in any order of near ties: each of the expected ones has its own partner.

    New ids are in the order of rows: they are compared only if all rows have theirs, `by_id`.
    """
    differences = np.abs(result['boxes_3d'].numpy()[None] - expected['boxes_3d'][:, None]).max(-1)
    differences[expected['labels_3d'][:, None] != result['labels_3d'].numpy()[None]] = np.inf
    partner = differences.argmin(1)
    assert len(set(partner)) == len(partner) and differences.min(1).max() <= METRES
    same(result['scores_3d'].numpy()[partner], expected['scores_3d'], SCORES)
    same(result['cls_scores'], expected['cls_scores'], SCORES)
    if by_id:
        assert (result['instance_ids'].numpy()[partner] == expected['instance_ids']).all()


@pytest.mark.parametrize('frames', [1, pytest.param(3, marks=pytest.mark.matrix)])
def test_the_head_alone(model, frames):
    head = model.head
    head.instance_bank.reset()
    shapes, starts = steps.map_sizes(golden.SIZES, 6)
    for case in range(frames):
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
    """Run a frame with points at borders of pictures on upstream's side; return outputs and taps.

    `choice` returns what stands for `best_rows`. Measured with one thread: in frame 1 a point of the fifth
    layer is at 0 exactly, which is outside; upstream's was inside. It moves its instance by 4 mm and 0.025 of
    a logit.
    """
    memory = vars(model.head.instance_bank)
    before = {name: memory[name] for name in STATE}

    def run(points):
        memory.update(before)
        choosing = mock.patch.object(steps, 'best_rows', choice())
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


@pytest.mark.matrix
def test_a_drive_with_a_choice_of_its_own(model, features_of):
    """Rows of near-equal scores may change places, which frames from a gap to a reset then depend on."""
    instance_bank, is_behind_a_gap = model.head.instance_bank, False
    for frame, expected in drive(model):
        outputs, _ = run_frame(model, features_of(frame), frame, expected, lambda: steps.best_rows)
        (result,) = model.head.post_process(outputs)
        is_behind_a_gap = instance_bank.mask is not None and (is_behind_a_gap or not instance_bank.mask)
        if is_behind_a_gap:
            scores = -np.sort(-result['scores_3d'].numpy())
            same(scores, expected['scores_3d'], LOOSE_SCORES)
            continue
        anchors = outputs['prediction'][-1][0].numpy()
        partner = pair_rows(expected['prediction_015'][-1].astype(np.float64), anchors.astype(np.float64))
        assert len({*partner}) == len(anchors), frame
        same_anchors(anchors[partner], expected['prediction_015'][-1])
        same(outputs['classification'][-1][0][partner], expected['classification_5'], LOGITS)
        kept = partner[expected['cache_topk_index']]
        assert {*kept} == {*instance_bank.kept[0].tolist()}, frame
        assert instance_bank.prev_id == expected['prev_id']
        same_boxes(result, expected, by_id=bool((partner == np.arange(len(partner))).all()))
