"""What rounding decides in SOLO: neighbours of equal score in points NMS, pixels at the masks' threshold."""

import contextlib

import numpy as np
import pytest

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.proving.tasks.mask import match_detections
from mmdeploy_ext.proving.tensors import without_ties
from toy_solo import load_toy, prepared

ROUNDING = 1e-6
"""Of a logit."""


@pytest.fixture(scope='module', params=['solo', 'decoupled'])
def solo(request, tmp_path_factory):
    return load_toy(request.param, tmp_path_factory.mktemp('weights'))


@contextlib.contextmanager
def neighbours(model, above, pairs=1):
    """Set logits of the third level to high values, and those right of them to values `above` these.

    Up to eight pairs. Masks of these cells differ, so that no suppression hides what points NMS keeps.
    """
    calls = []

    def plant(module, inputs, logits):
        calls.append(logits)
        if len(calls) % model.mask_head.num_levels != 3:
            return None
        logits = logits.clone()
        for pair in range(pairs):
            row, column = pair % 4 * 2, 4 - pair // 4 * 3
            logits[:, 0, row, column], logits[:, 0, row, column + 1] = 3.0, 3.0 + above
        return logits

    handle = model.mask_head.conv_cls.register_forward_hook(plant, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def judge(solo, before, after, pairs=1):
    """Return what is left of the tensors' difference, and the row of the results with and without ties."""
    family, model, image = solo.family, solo.model, prepared(solo, 1)
    feeds = family.feeds([image], True)
    with neighbours(model, before, pairs):
        tensors, (wanted,) = family.reference_tensors(model, feeds, 'raw'), run(solo, image)
        zeros = family.interchangeable_zeros(model, feeds)
        ties = otherwise(solo, image)
    with neighbours(model, after, pairs):
        other, (found,) = family.reference_tensors(model, feeds, 'raw'), run(solo, image)
    assert np.abs(other['cate_pred'] - tensors['cate_pred']).max() > 0.5
    left = np.abs(without_ties(tensors, other, zeros)['cate_pred'] - tensors['cate_pred']).max()
    strict = match_detections('image', wanted, found)
    return left, strict, match_detections('image', wanted, found, near_ties=lambda: ties)


def otherwise(solo, image):
    """Return PyTorch's results with each of the choices that rounding makes, made otherwise."""
    found = []
    for choice in solo.family.rounded_choices(solo.model):
        with choice:
            found += run(solo, image)
    return found


def run(solo, image):
    return solo.family.reference_detections(solo.model, [image], True)


@pytest.mark.suite('solo-lost', 'decoupled-gained')
@pytest.mark.parametrize('sides', [(ROUNDING, -ROUNDING), (-ROUNDING, ROUNDING)], ids=['lost', 'gained'])
def test_a_tie_above_the_threshold_is_told_from_a_difference(solo, sides):
    left, strict, row = judge(solo, *sides)
    assert left <= 1e-4
    assert not strict.passed
    assert row.passed
    assert row.ties >= 1


@pytest.mark.suite('solo')
def test_neighbours_that_differ_by_more_are_no_tie(solo):
    left, _, row = judge(solo, 1e-2, -1e-2)
    assert left > 0.5
    assert not row.passed


def test_many_ties_are_not_excused_in_tensors(solo):
    left, *_ = judge(solo, ROUNDING, -ROUNDING, pairs=8)
    assert left > 0.5


def with_mask_thr(solo, image, value):
    """Return PyTorch's results with this threshold of soft masks, and those that rounding may give."""
    with replaced_entry(solo.model.mask_head.test_cfg, 'mask_thr', value):
        return run(solo, image)[0], otherwise(solo, image)


@pytest.mark.suite('rounding')
@pytest.mark.parametrize(('gap', 'excused'), [(6e-6, True), (4e-5, False)], ids=['rounding', 'more'])
def test_a_pixel_at_the_threshold_may_be_on_either_side(tmp_path_factory, gap, excused):
    solo = load_toy('solo', tmp_path_factory.mktemp('weights'))
    image = prepared(solo, 1)
    soft = solo.family.reference_tensors(solo.model, solo.family.feeds([image], True), 'raw')['seg_pred']
    near = np.sort(soft[(soft > 0.45) & (soft < 0.55)]).astype(float)
    if not excused:
        near = near[np.diff(near, append=1) > 3.5e-5]  # else another pixel is at the upper threshold
    near = near[:: max(len(near) // 60, 1)]
    for value in near:
        wanted, ties = with_mask_thr(solo, image, value + gap / 2)
        found, _ = with_mask_thr(solo, image, value - gap / 2)
        if not match_detections('image', wanted, found).passed:
            break
    else:
        pytest.fail(f'none of {len(near)} thresholds decides')
    row = match_detections('image', wanted, found, near_ties=lambda: ties)
    assert row.passed == excused
    assert bool(row.ties) == excused


def test_the_model_is_as_before(solo):
    feeds = solo.family.feeds([prepared(solo, 1)], True)
    before = solo.family.reference_tensors(solo.model, feeds, 'raw')['cate_pred']
    for choice in solo.family.rounded_choices(solo.model):
        with contextlib.suppress(ZeroDivisionError), choice:
            raise ZeroDivisionError
    assert np.array_equal(before, solo.family.reference_tensors(solo.model, feeds, 'raw')['cate_pred'])
    assert not solo.model.mask_head.conv_cls._forward_hooks
