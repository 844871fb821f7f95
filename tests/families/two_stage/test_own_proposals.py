"""Heads of proposals and of regions of users: what theirs do otherwise than mmdet's is found by trying."""

import numpy as np
import pytest
import torch
from mmcv import ConfigDict
from mmdet.models import build_head
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import GARPNHead, RPNHead
from mmdet.models.roi_heads import StandardRoIHead

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common import proposals
from mmdeploy_ext.families.two_stage import boxes
from mmdeploy_ext.families.two_stage.reference import TwoStageReference
from toy_two_stage import options_of, seeded, toy

NEWER = dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=33)
OLDER = dict(nms_thr=0.6, nms_post=11, max_num=22)


class KeepsEqualSides(RPNHead):
    """As many before mmdet 2.15: sides as long as the smallest remain."""

    def _bbox_post_process(self, scores, deltas, anchors, levels, cfg, shape, **kwargs):
        smallest = np.float32(cfg.min_bbox_size)
        cfg.min_bbox_size = float(np.nextafter(smallest, np.float32(0))) if smallest > 0 else -1
        return super()._bbox_post_process(scores, deltas, anchors, levels, cfg, shape, **kwargs)


class ReadsOlderEntries(RPNHead):
    """As mmdet before 2.10."""

    def _bbox_post_process(self, scores, deltas, anchors, levels, cfg, shape, **kwargs):
        cfg.update(nms=dict(type='nms', iou_threshold=cfg.nms_thr), max_per_img=cfg.nms_post)
        return super()._bbox_post_process(scores, deltas, anchors, levels, cfg, shape, **kwargs)


class ProposesOtherwise(RPNHead):
    def _bbox_post_process(self, *args, **kwargs):
        return super()._bbox_post_process(*args, **kwargs)[1:]


def head_of(kind, **test_cfg):
    settings = ConfigDict(dict(nms_pre=9, nms_post=7, min_bbox_size=0), **test_cfg)
    built = 'GARPNHead' if kind is GARPNHead else 'RPNHead'
    head = build_head(dict(type=built, in_channels=1, feat_channels=1, train_cfg=None, test_cfg=settings))
    head.__class__ = kind
    return head.eval()


@pytest.mark.parametrize(
    ('kind', 'smallest', 'kept'),
    [
        (RPNHead, 0, [5]), (RPNHead, 5, []), (GARPNHead, 0, [5]),
        (KeepsEqualSides, 0, [0, 5]), (KeepsEqualSides, 5, [5]),
    ],
)  # fmt: skip
def test_whether_sides_as_long_as_the_smallest_remain_is_found_by_trying(kind, smallest, kept):
    head = head_of(kind, **NEWER | dict(min_bbox_size=smallest))
    least = proposals.proposals_of(head).smallest
    assert [side for side in (0, 5) if side > least] == kept


@pytest.mark.parametrize(
    ('kind', 'entries', 'expected'),
    [(RPNHead, NEWER | OLDER, (0.6, 33)), (ReadsOlderEntries, OLDER, (0.6, 11))],
)
def test_the_overlap_and_the_limit_are_the_entries_that_the_head_reads(kind, entries, expected):
    head = head_of(kind, **entries)
    proposals.check_head(head)
    config = proposals.thresholds(head)
    assert (config.iou_threshold, config.max_per_img) == expected
    changed = dict(head.test_cfg, **proposals.suppression_entries(head, 0.4, 5))
    head.test_cfg = ConfigDict(changed)
    config = proposals.thresholds(head)
    assert (config.iou_threshold, config.max_per_img) == (0.4, 5)


@pytest.mark.parametrize(
    ('kind', 'said'),
    [
        (ProposesOtherwise, r'ProposesOtherwise\._bbox_post_process'),
        (ReadsOlderEntries, 'nms_thr'),
    ],
)
def test_a_head_that_proposes_otherwise_is_refused_by_its_method(monkeypatch, kind, said):
    monkeypatch.setitem(HEADS.module_dict, kind.__name__, kind)
    cfg = toy()
    cfg.model.rpn_head.type = kind.__name__
    with pytest.raises(ConfigError, match=said):
        find_family(cfg).check(cfg, options_of('faster'))


def padding_head(is_padding):
    """Return a class of heads of regions that give zeros for padding, as mmdet 2.11 to 2.13."""

    class Padding(StandardRoIHead):
        def simple_test_bboxes(self, x, img_metas, regions, *args, **kwargs):
            forward = self._bbox_forward

            def padded(x, rois):
                outputs = forward(x, rois)
                kept = torch.tensor([not is_padding(row) for row in rois[:, 1:].tolist()])[:, None]
                return dict(outputs, cls_score=outputs['cls_score'] * kept)

            self._bbox_forward = padded
            try:
                return super().simple_test_bboxes(x, img_metas, regions, *args, **kwargs)
            finally:
                del self._bbox_forward

    return Padding


@pytest.mark.parametrize(
    ('is_padding', 'expected'),
    [(lambda row: row[3] == 0, 'lower'), (lambda row: not any(row), 'all'), (lambda row: False, '')],
)
def test_which_regions_are_padding_is_found_by_trying(is_padding, expected):
    head = seeded('faster').roi_head
    own = head.__class__
    head.__class__ = padding_head(is_padding)
    try:
        assert boxes.padded_rows(head) == expected
        pads = lambda row: row[0] == 4  # noqa: E731
        head.__class__ = padding_head(pads)
        with pytest.raises(ConfigError, match=r'your Padding\.simple_test_bboxes .* drops regions'):
            boxes.padded_rows(head)
        head.__class__ = padding_head(lambda row: row[9])
        with pytest.raises(ConfigError, match=r'your Padding\.simple_test_bboxes .* IndexError'):
            boxes.padded_rows(head)
    finally:
        head.__class__ = own


def test_a_proof_leaves_padding_out_where_the_users_code_replaces_its_outputs_later():
    model = seeded('faster').eval()
    model.roi_head.__class__ = padding_head(lambda row: row[3] == 0)
    proposals = torch.tensor([[[4.0, 4, 40, 40, 0.9], [4, 0, 12, 0, 0.8], [8, 8, 60, 30, 0.7]]])
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 64, 64))
        rois = torch.cat([torch.zeros(3, 1), proposals[0, :, :4]], dim=1)
        outputs = model.roi_head._bbox_forward(maps, rois)
    tensors = {f'features_{level}': values.numpy() for level, values in enumerate(maps)}
    for name in ('cls_score', 'bbox_pred'):
        outputs[name][1] = 0
        tensors[f'{name}_0'] = outputs[name][None].numpy()
    tensors['proposals'] = proposals.numpy()
    expected, actual = TwoStageReference(model).inner_tensors(tensors)
    assert {name: len(values) for name, values in expected.items()} == dict(cls_score_0=2, bbox_pred_0=2)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-4, atol=1e-5)
