"""Outputs of heads that trained weights rarely give: scores of the outermost cells, boxes beyond limits."""

import types

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.families.parts.exaggerated import raised_corners
from mmdeploy_ext.families.query.family import _of_all_sizes
from mmdeploy_ext.families.two_stage.exaggerated import changed_regions


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 4)])
def test_the_first_and_the_last_prior_have_the_highest_scores(size):
    logits = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0)) - 5
    scores = raised_corners(logits).sigmoid()
    assert (scores[:, -1, -1, -1] > 0.8).all()
    assert size == (1, 1) or (scores[:, 0, 0, 0] > 0.8).all()
    best_of_last = scores[..., -1, -1].argmax(1)
    assert best_of_last.tolist() == [5, 5]
    unchanged = torch.ones(size, dtype=torch.bool)
    unchanged[0, 0] = unchanged[-1, -1] = False
    assert (raised_corners(logits) == logits)[..., unchanged].all()


@pytest.mark.parametrize('agnostic', [True, False])
def test_some_boxes_of_regions_are_beyond_the_limit_of_a_width_and_others_of_a_height(agnostic):
    coder = types.SimpleNamespace(stds=(0.1, 0.1, 0.2, 0.2))
    head = types.SimpleNamespace(bbox_coder=coder, reg_class_agnostic=agnostic)
    deltas = torch.randn(40, 4 if agnostic else 12, generator=torch.Generator().manual_seed(0))
    shared = torch.ones(40, 8)  # SCNet's heads give it, too
    scores, changed, features = changed_regions(head)((torch.zeros(40, 4), deltas, shared))
    assert features is shared and len(changed_regions(head)((scores, deltas))) == 2
    widths, heights = (changed[:, column::4] > 20 for column in (2, 3))
    assert widths.any() and heights.any() and not (widths & heights).any()
    assert not (widths | heights).all() and not scores.any()


@pytest.mark.parametrize('shape', [(6, 4), (1, 6, 4)])
def test_regions_of_queries_become_larger_and_smaller(shape):
    moved = _of_all_sizes((0.5, 0.5, 1.0, 2.0))(torch.zeros(shape))
    sizes = (moved * torch.tensor([0.5, 0.5, 1.0, 2.0])).exp().reshape(-1, 4)
    assert moved.shape == shape
    torch.testing.assert_close(sizes[:, 2], torch.tensor([4.0, 1.0, 0.25] * 2))
    torch.testing.assert_close(sizes[:, 2], sizes[:, 3])
    assert (sizes[:, :2] == 1).all()
