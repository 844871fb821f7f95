"""Anchors of RT-DETR: which ones count is the original's comparison, at every size and in every engine."""

import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.models.rtdetr.decoder import Anchors


def test_centres_count_as_in_float32_comparisons_at_every_size():
    for size in [*range(1, 400), 450, 550, 650, 750]:  # 50, 150, 250 ... have a centre on the margin itself
        anchors, valid = Anchors()([torch.zeros(1, 1, 1, size), torch.zeros(1, 1, size, 1)])
        centres = (torch.arange(size) + 0.5) / size
        inside = (centres > 0.01) & (centres < 0.99)
        middle = (torch.full((size,), 0.5) > 0.01) & inside
        expected = torch.cat([middle, middle])
        assert torch.equal(valid[:, 0].bool(), expected), size
        assert torch.equal(anchors.isinf().all(-1), ~expected), size
