"""YOLACT against mmdet's own `simple_test`: eager, exported, and what is refused."""

import copy
import dataclasses
import functools
import types

import numpy as np
import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.yolact.runtime import detections
from mmdeploy_ext.seeded.weights import seeded_model
from mmdeploy_ext.tasks.boxed_mask import match_detections
from toy_query import exported, images, options_of, run_stages
from toy_yolact import toy

FULL = types.SimpleNamespace(form='full', options={})
FAMILY = FAMILIES['yolact']
ORIGINAL = (150, 210)
OPTIONS = options_of(family='yolact')


@functools.cache
def seeded():
    return seeded_model(toy(), FAMILY).eval()


def pictures(*chosen):
    """Return pictures of one original size, whose contents in the input differ."""
    return [dataclasses.replace(one, ori_shape=ORIGINAL) for one in images(*chosen)]


def rows(outputs, wanted):
    found = detections(FULL, outputs, {})
    return [match_detections('image', *pair) for pair in zip(wanted, found, strict=True)]


def same(outputs, prepared, rescale=True):
    wanted = FAMILY.reference(seeded()).results(prepared, rescale)
    for row, one in zip(rows(outputs, wanted), wanted, strict=True):
        assert row.passed and row.reference >= 20, row
        assert len(set(one.labels.tolist())) > 1
        assert 0 < one.masks.sum() < one.masks.size


@pytest.mark.parametrize('rescale', [True, False])
def test_eager_results_of_every_image_are_those_of_simple_test(rescale):
    FAMILY.check(toy(), OPTIONS)
    feeds = {'scale_factor': np.ones((3, 4), np.float32)} | FAMILY.feeds(pictures(3), rescale)
    same(run_stages(FAMILY.stages(seeded(), OPTIONS), feeds), pictures(3), rescale)


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(exporter):
    chosen = options_of(family='yolact', dynamic=True, exporter=exporter)
    chosen = chosen.replace(opset=18) if exporter == 'dynamo' else chosen
    run = exported(FAMILY, seeded(), chosen, pictures(1))
    for prepared in (pictures(3, (192, 256), 9), pictures(2, (250, 161), 3)):
        same(run(prepared), prepared)


def test_without_detections_results_are_empty():
    model = copy.deepcopy(seeded())
    model.bbox_head.test_cfg.score_thr = 2.0
    outputs = run_stages(FAMILY.stages(model, OPTIONS), FAMILY.feeds(pictures(2), True))
    assert [len(one) for one in detections(FULL, outputs, {})] == [0, 0] and not outputs['masks'].any()
    assert [len(one) for one in FAMILY.reference(model).results(pictures(2), True)] == [0, 0]


def change(path, value):
    """Return what sets a key of a config."""

    def apply(model):
        *keys, last = path.split('.')
        for key in keys:
            model = model[key]
        model[last] = value

    return apply


REFUSED = {
    'max_per_img=100': change('test_cfg.max_per_img', 100),
    'bbox_coder is YOLOBBoxCoder': change('bbox_head.bbox_coder', dict(type='YOLOBBoxCoder')),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(said):
    cfg = toy()
    REFUSED[said](cfg.model)
    with pytest.raises(ConfigError, match=said) as refused:
        find_family(cfg).check(cfg, OPTIONS)
    assert cfg.filename in str(refused.value) and '\n' not in str(refused.value)
