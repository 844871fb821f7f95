"""A result without a partner is excused only where PyTorch itself, moved by rounding, does the same."""

import dataclasses

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms

from mmdeploy_ext.proving.near_ties import (
    ROUNDING,
    TIE_IOU,
    other_layer_rounding,
    other_rounding,
    with_moved_thresholds,
    with_other_rounding,
)
from mmdeploy_ext.proving.results import Case
from mmdeploy_ext.proving.tasks.bbox2d import match_detections
from mmdeploy_ext.proving.totals import total_reasons
from mmdeploy_ext.runtime.detections import Detections

THRESHOLD = 0.5
BEST, LAST = [0.0, 0.0, 100.0, 100.0], [300.0, 300.0, 340.0, 330.0]


class Head(torch.nn.Module):
    def __init__(self, threshold=THRESHOLD):
        super().__init__()
        self.test_cfg = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=threshold), max_per_img=2)


def boxes(overlap: float) -> torch.Tensor:
    """Return three boxes: the second has this IoU with the first."""
    return torch.tensor([BEST, [0.0, 0.0, 100.0, 100.0 * overlap], LAST])


def results(head: Head, overlap: float) -> Detections:
    """Return what is left after the suppression that the head asks for, and the limit of two."""
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    dets, keep = batched_nms(boxes(overlap), scores, labels, head.test_cfg['nms'])
    dets, keep = dets[:2], keep[:2]
    return Detections(dets[:, :4].numpy(), dets[:, 4].numpy(), labels[keep].numpy())


def judged(ours: float, others: float):
    """Return the row of two engines that see an IoU of `ours` and of `others`."""
    head = Head()
    model = torch.nn.ModuleDict(dict(head=head))
    return match_detections(
        'a.jpg',
        results(head, ours),
        results(head, others),
        capacity=2,
        near_ties=lambda: with_moved_thresholds(model, lambda: results(head, ours)),
    )


@pytest.mark.parametrize(('ours', 'others'), [(0.50001, 0.49999), (0.49999, 0.50001)])
def test_a_box_at_the_threshold_may_be_suppressed_or_not(ours, others):
    row = judged(ours, others)
    assert row.passed
    assert (row.matched, row.missing, row.extra, row.ties) == (1, 0, 0, 2)


@pytest.mark.parametrize(('ours', 'others'), [(0.51, 0.49), (0.499, 0.501), (0.5 + 3 * TIE_IOU, 0.49999)])
def test_one_that_is_not_near_the_threshold_is_missing(ours, others):
    row = judged(ours, others)
    assert not row.passed
    assert (row.missing, row.extra, row.ties) == (1, 1, 0)


def test_another_box_beside_a_tie_is_still_extra():
    head = Head()
    model = torch.nn.ModuleDict(dict(head=head))
    reference, candidate = results(head, 0.50001), results(head, 0.49999)
    garbage = Detections(
        np.concatenate([candidate.bboxes_xyxy, [[7, 7, 50, 50]]]).astype(np.float32),
        np.append(candidate.scores, np.float32(0.6)),
        np.append(candidate.labels, 0),
    )
    near_ties = with_moved_thresholds(model, lambda: results(head, 0.50001))
    row = match_detections('a.jpg', reference, garbage, near_ties=lambda: near_ties)
    assert not row.passed
    assert row.extra == 1


def test_thresholds_are_as_before_whatever_happens():
    head = Head()
    model = torch.nn.ModuleDict(dict(head=head, same=head))
    seen = []
    with pytest.raises(ZeroDivisionError):
        list(
            with_moved_thresholds(
                model, lambda: seen.append(head.test_cfg['nms']['iou_threshold']) or 1 / (2 - len(seen))
            )
        )
    assert head.test_cfg['nms']['iou_threshold'] == THRESHOLD
    assert seen == [THRESHOLD - TIE_IOU, THRESHOLD + TIE_IOU]


def test_nothing_is_asked_where_all_have_partners():
    one = results(Head(), 0.3)
    assert match_detections('a.jpg', one, one, near_ties=lambda: pytest.fail('asked')).passed


@pytest.mark.parametrize(('lost', 'asked'), [(1, True), (10, True), (20, True), (21, False), (100, False)])
def test_nothing_is_asked_where_more_is_alone_than_can_be_excused(lost, asked):
    whole = spread(100)
    rest = Detections(whole.bboxes_xyxy[lost:], whole.scores[lost:], whole.labels[lost:])
    asks = []
    row = match_detections('a.jpg', whole, rest, near_ties=lambda: asks.append(1) or [rest])
    assert bool(asks) == asked
    assert (row.missing, row.ties) == ((0, lost) if asked else (lost, 0))


def spread(count):
    """Return boxes that do not overlap."""
    corners = np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32) * 100
    return Detections(
        np.concatenate([corners, corners + 50], axis=1),
        np.full(count, 0.5, np.float32),
        np.zeros(count, np.int64),
    )


def test_many_ties_are_a_fault():
    tied = judged(0.50001, 0.49999)
    case = Case('traced input', '1x3x64x64', True, (), (tied,) * 3)
    assert any('near its threshold' in reason for reason in total_reasons([case] * 3))


@pytest.mark.parametrize(('ties', 'many'), [(4, False), (5, False), (6, True)])
def test_ties_are_a_share_of_the_references_results(ties, many):
    row = dataclasses.replace(judged(0.3, 0.3), reference=500, matched=500 - ties // 2, ties=ties)
    case = Case('traced input', '1x3x64x64', True, (), (row,))
    assert any('1 % of 500' in reason for reason in total_reasons([case])) == many


class Scores(torch.nn.Module):
    """Two boxes that suppress each other; a convolution gives their scores, or the logits of a sigmoid."""

    def __init__(self, gap, logit=None):
        super().__init__()
        self.conv, self.sigmoid = torch.nn.Conv2d(1, 2, 1), logit is not None
        lower = logit if self.sigmoid else 0.7
        with torch.no_grad():
            self.conv.weight.fill_(0.0)
            self.conv.bias.copy_(torch.tensor([lower + gap, lower]))

    def found(self):
        with torch.no_grad():
            scores = self.conv(torch.ones(1, 1, 1, 1)).flatten()
            scores = scores.sigmoid() if self.sigmoid else scores
        overlapping = torch.tensor([BEST, [0.0, 0.0, 100.0, 80.0]])
        dets, keep = batched_nms(
            overlapping, scores, torch.zeros(2, dtype=torch.int64), dict(type='nms', iou_threshold=0.5)
        )
        return Detections(dets[:, :4].numpy(), dets[:, 4].numpy(), np.zeros(len(keep), np.int64))


@pytest.mark.parametrize(('gap', 'excused'), [(6e-8, True), (2e-6, False)])
def test_two_results_of_equal_score_may_suppress_each_other_either_way(gap, excused):
    model, other = Scores(gap), Scores(-gap)
    row = match_detections(
        'a.jpg', model.found(), other.found(), near_ties=lambda: with_other_rounding(model, model.found)
    )
    assert (row.passed, row.ties) == ((True, 2) if excused else (False, 0))
    assert not model.conv._forward_hooks


@pytest.mark.parametrize(('logit', 'gap', 'excused'), [(-16.0, 0.2, True), (-8.0, 0.2, False)])
def test_scores_of_a_sigmoid_are_equal_within_its_absolute_rounding(logit, gap, excused):
    """ONNX Runtime's sigmoid is right to 1.4e-7: logits of -16 and -15.8 may have either order, not of -8."""
    model, other = Scores(gap, logit), Scores(-gap, logit)
    row = match_detections(
        'a.jpg',
        model.found(),
        other.found(),
        score_thr=0.0,
        near_ties=lambda: with_other_rounding(model, model.found),
    )
    assert (row.passed, row.ties) == ((True, 2) if excused else (False, 0))
    assert torch.sigmoid(torch.tensor(0.0)) == 0.5


@pytest.mark.parametrize(('change', 'moved'), [(other_layer_rounding, False), (other_rounding, True)])
def test_layers_round_otherwise_with_sigmoids_or_without(change, moved):
    model, scores = Scores(0.0), torch.full((8,), -16.0).sigmoid()
    still = model.conv(torch.ones(1, 1, 1, 1))
    with change(model, 0, ROUNDING):
        assert not torch.equal(model.conv(torch.ones(1, 1, 1, 1)), still)
        assert torch.equal(torch.full((8,), -16.0).sigmoid(), scores) is not moved
    assert torch.equal(model.conv(torch.ones(1, 1, 1, 1)), still)


@pytest.mark.parametrize(('explaining', 'asked', 'ties'), [(3, 3, 1), (19, 19, 1), (25, 20, 0)])
def test_runs_are_made_until_all_is_explained_and_no_more_where_nothing_is(explaining, asked, ties):
    """The run of this number, if it is made, gives the candidate's list."""
    whole = spread(100)
    rest = Detections(whole.bboxes_xyxy[1:], whole.scores[1:], whole.labels[1:])
    made = []

    def runs():
        for number in range(1, 31):
            made.append(number)
            yield rest if number == explaining else whole

    row = match_detections('a.jpg', whole, rest, near_ties=runs)
    assert (len(made), row.ties, row.missing) == (asked, ties, 1 - ties)


@pytest.mark.parametrize(
    ('ranked', 'others', 'passes'), [(True, 5.0, True), (False, 5.0, False), (True, 6.0, False)]
)
def test_all_results_may_move_where_queries_have_ranks_and_one_run_of_pytorch_moves_them_so(
    ranked, others, passes
):
    corners = np.arange(40, dtype=np.float32)[:, None] * 50 + np.array([0, 0, 30, 30], np.float32)

    def moved(pixels):
        scores = np.linspace(0.9, 0.5, 40, dtype=np.float32)
        return Detections(corners + np.float32(pixels), scores, np.zeros(40, np.int64))

    row = match_detections(
        'a.jpg', moved(0), moved(5.0), near_ties=lambda: iter([moved(0.001), moved(others)]), ranked=ranked
    )
    assert row.passed == passes
    assert row.outside == (0 if passes else 40)
