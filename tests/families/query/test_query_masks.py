"""Mask2Former's instances against mmdet's own `simple_test`: eager, exported, and what is refused."""

import dataclasses
import types

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.families.parts.runtime.padded_results import detections
from mmdeploy_ext.families.query.family import INSTANCES as FAMILY
from mmdeploy_ext.tasks.mask import match_detections
from toy_query import exported, images, options_of, run_stages, seeded, toy

FULL = types.SimpleNamespace(form='full', options={})
ORIGINAL = (150, 210)


def pictures(*chosen):
    """Return pictures of one original size, whose contents in the input differ."""
    return [dataclasses.replace(one, ori_shape=ORIGINAL) for one in images(*chosen)]


def rows(outputs, wanted):
    found = detections(FULL, outputs, {})
    return [match_detections('image', one, other) for one, other in zip(wanted, found, strict=True)]


def same(kind, outputs, prepared):
    """Assert that results are those of `simple_test`, and that every image has some of several classes."""
    wanted = FAMILY.reference(seeded(kind)).results(prepared, True)
    for row, one in zip(rows(outputs, wanted), wanted, strict=True):
        assert row.passed and row.reference >= 10, row
        assert len(set(one.labels.tolist())) > 1


@pytest.mark.parametrize('kind', ['instances', 'panoptic'])
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    prepared, options = pictures(3), options_of()
    FAMILY.check(toy(kind), options)
    same(kind, run_stages(FAMILY.stages(seeded(kind), options), FAMILY.feeds(prepared, True)), prepared)


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(exporter):
    model = seeded('panoptic')
    options = options_of(dynamic=True, exporter=exporter)
    options = options.replace(opset=18) if exporter == 'dynamo' else options
    run = exported(FAMILY, model, options, pictures(1))
    for prepared in (pictures(3, (192, 256), 9), pictures(2, (256, 160), 3)):
        same('panoptic', run(prepared), prepared)
