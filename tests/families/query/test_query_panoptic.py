"""Panoptic maps of queries against mmdet's own `simple_test`: both forms, exported, and refusals."""

import dataclasses
import types

import numpy as np
import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.query.family import MAPS as FAMILY
from mmdeploy_ext.families.query.runtime import detections
from mmdeploy_ext.runtime.panoptic import Segments, segments_of
from mmdeploy_ext.tasks.panoptic import match_detections
from toy_query import exported, images, options_of, run_stages, seeded, toy

CLASSES = 6
ORIGINAL = (150, 210)
KINDS = ('panoptic', 'maskformer')


def pictures(*chosen):
    """Return pictures of one original size, whose contents in the input differ."""
    return [dataclasses.replace(one, ori_shape=ORIGINAL) for one in images(*chosen)]


def file_of(kind, form):
    """Return what the runtime reads of a file."""
    return types.SimpleNamespace(form=form, postprocess=FAMILY.facts(seeded(kind)))


def rows(kind, form, outputs, prepared, wanted):
    arrays = {name: np.asarray(one) for name, one in outputs.items()}
    found = detections(file_of(kind, form), arrays, FAMILY.feeds(prepared, True))
    return [match_detections('image', one, other) for one, other in zip(wanted, found, strict=True)]


def same(kind, form, outputs, prepared):
    """Assert that segments are those of `simple_test`, and that there are things and stuff among them."""
    wanted = FAMILY.reference(seeded(kind)).results(prepared, True)
    for row in rows(kind, form, outputs, prepared, wanted):
        assert row.passed, row
    labels = np.concatenate([one.labels for one in wanted])
    assert len(labels) >= 8 and labels.min() < 4 <= labels.max() < CLASSES


@pytest.mark.suite('panoptic-full', 'maskformer-full')
@pytest.mark.parametrize('form', ['full', 'raw'])
@pytest.mark.parametrize('kind', KINDS)
def test_eager_segments_of_every_image_are_those_of_simple_test(kind, form):
    prepared, options = pictures(3), options_of(form=form)
    FAMILY.check(toy(kind), options)
    same(kind, form, run_stages(FAMILY.stages(seeded(kind), options), FAMILY.feeds(prepared, True)), prepared)


@pytest.mark.parametrize('kind', KINDS)
def test_tensors_of_the_raw_form_are_those_of_the_head(kind):
    feeds, options = FAMILY.feeds(pictures(3), True), options_of(form='raw')
    outputs = run_stages(FAMILY.stages(seeded(kind), options), feeds)
    for name, wanted in FAMILY.reference(seeded(kind)).tensors(feeds, 'raw').items():
        assert np.abs(np.asarray(outputs[name]) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    [
        ('maskformer', 'torchscript'),
        pytest.param('panoptic', 'torchscript', marks=pytest.mark.matrix),
        pytest.param('panoptic', 'dynamo', marks=pytest.mark.matrix),
        pytest.param('maskformer', 'dynamo', marks=pytest.mark.matrix),
    ],
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    options = options_of(dynamic=True, exporter=exporter)
    options = options.replace(opset=18) if exporter == 'dynamo' else options
    run = exported(FAMILY, seeded(kind), options, pictures(1))
    for prepared in (pictures(3, (192, 256), 9), pictures(2, (256, 160), 3)):
        wanted = FAMILY.reference(seeded(kind)).results(prepared, True)
        for row in rows(kind, 'full', run(prepared), prepared, wanted):
            assert row.passed and row.reference, row


def test_a_map_is_its_segments():
    panoptic = np.full((4, 6), CLASSES, np.int32)
    panoptic[:2], panoptic[2:, :2], panoptic[2:, 2:4] = 5, 1001, 2001
    found = Segments.of_map(panoptic, CLASSES)
    assert found.ids.tolist() == [5, 1001, 2001] and found.labels.tolist() == [5, 1, 1]
    assert (found.to_map(CLASSES) == panoptic).all()
    assert [entry['id'] for entry in found.to_json()] == [5, 1001, 2001]
    for wrong, value in (((panoptic == 5) * 1002, 1007), ((panoptic == CLASSES) * 1000, 1006)):
        with pytest.raises(ModelFileError, match=f'{value}'):
            segments_of(dict(panoptic=panoptic[None] + wrong), CLASSES)


def test_a_segment_with_another_number_is_not_matched_but_in_half_precision():
    panoptic = np.full((40, 60), CLASSES, np.int32)
    panoptic[:20], panoptic[20:, :30] = 4, 1001
    right, later = (Segments.of_map(panoptic + (panoptic == 1001) * more, CLASSES) for more in (0, 7000))
    assert match_detections('map', right, right).matched == 2
    row = match_detections('map', right, later)
    assert not row.passed and (row.matched, row.outside) == (1, 1)
    assert match_detections('map', right, later, iou_bar=0.9).passed


def test_segments_that_differ_in_class_or_pixels_are_not_matched():
    panoptic = np.full((40, 60), CLASSES, np.int32)
    panoptic[:20], panoptic[20:, :30] = 4, 1001
    right = Segments.of_map(panoptic, CLASSES)
    for change in (
        lambda one: one.__setitem__((slice(20, None), slice(0, 30)), 1002),
        lambda one: one.__setitem__((slice(20, None), slice(29, 30)), CLASSES),
        lambda one: one.__setitem__((slice(20, 30), slice(0, 30)), 2001),
        lambda one: one.__setitem__((slice(None), slice(None)), CLASSES),
    ):
        other = panoptic.copy()
        change(other)
        assert not match_detections('image', right, Segments.of_map(other, CLASSES)).passed
        assert not match_detections('image', Segments.of_map(other, CLASSES), right).passed
