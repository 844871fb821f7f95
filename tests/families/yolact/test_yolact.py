"""YOLACT against mmdet's own `simple_test`: eager, exported, and what is refused."""

import copy
import functools

import numpy as np
import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, changed, check, exported, matched, of_one_size, run_stages, seeded_toy
from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import FAMILIES
from toy_query import images, options_of
from toy_yolact import toy

FAMILY = FAMILIES['yolact']
OPTIONS = options_of(family='yolact')


@functools.cache
def seeded():
    return seeded_toy(toy(), FAMILY)


def pictures(*chosen):
    return of_one_size(images(*chosen))


def test_results_in_pixels_of_the_input_are_those_of_simple_test():
    FAMILY.check(toy(), OPTIONS)
    feeds = {'scale_factor': np.ones((2, 4), np.float32)} | FAMILY.feeds(pictures(2), False)
    outputs = run_stages(FAMILY.stages(seeded(), OPTIONS), feeds)
    check(FAMILY, seeded(), outputs, pictures(2), 20, rescale=False)


@pytest.mark.parametrize('exporter', in_suite(EXPORTERS, 'torchscript'))
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(exporter):
    options = options_of(family='yolact', dynamic=True, exporter=exporter)
    _, run = exported(FAMILY, seeded(), options, pictures(1))
    prepared = pictures(3, (250, 161), 3)
    check(FAMILY, seeded(), run(FAMILY.feeds(prepared, True)), prepared, 20)


def test_without_detections_results_are_empty():
    model = copy.deepcopy(seeded())
    model.bbox_head.test_cfg.score_thr = 2.0
    outputs = run_stages(FAMILY.stages(model, OPTIONS), FAMILY.feeds(pictures(2), True))
    rows = matched(FAMILY, model, outputs, pictures(2))
    assert [(row.passed, row.reference) for row in rows] == [(True, 0)] * 2 and not outputs['masks'].any()


@pytest.mark.parametrize(
    ('path', 'value', 'said'),
    [
        ('test_cfg.max_per_img', 100, 'max_per_img=100'),
        ('bbox_head.bbox_coder', dict(type='YOLOBBoxCoder'), 'bbox_coder is YOLOBBoxCoder'),
    ],
)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(path, value, said):
    with pytest.raises(ConfigError, match=said):
        FAMILY.check(changed(toy(), path, value), OPTIONS)
