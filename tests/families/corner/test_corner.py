"""CornerNet and CentripetalNet against mmdet's own `get_bboxes`: eager, exported, what is refused."""

import copy
import dataclasses
import itertools
import types

import pytest
import torch
from mmcv.ops import CornerPool

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from made_once import made_once
from marking import in_suite
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.copy import AXES, replace_class
from mmdeploy_ext.exporting.export import default_opset
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.parts.runtime.padded_results import detections
from mmdeploy_ext.seeded.weights import seeded_model
from mmdeploy_ext.tasks.bbox2d import match_detections
from toy_corner import KINDS, toy
from toy_query import exported, images, options_of, run_stages

FULL = types.SimpleNamespace(form='full', options={})
FAMILY = FAMILIES['corner']
LEAST = dict(corner=20, centripetal=12)
"""Results of a picture whose scores are not low."""
OPTIONS = options_of(family='corner')


@made_once
def seeded(kind='corner'):
    return seeded_model(toy(kind), FAMILY).eval()


def pictures(*chosen):
    """Return pictures with padding above and left of their contents, too."""
    return [dataclasses.replace(one, border=(4 * index, 6)) for index, one in enumerate(images(*chosen))]


def rows(outputs, wanted):
    found = detections(FULL, outputs, {})
    return [match_detections('image', *pair) for pair in zip(wanted, found, strict=True)]


def same(kind, outputs, prepared):
    wanted = FAMILY.reference(seeded(kind)).results(prepared, True)
    for row, one in zip(rows(outputs, wanted), wanted, strict=True):
        assert row.passed and row.reference >= LEAST[kind], row
        assert len(set(one.labels.tolist())) > 1


@pytest.mark.parametrize('kind', in_suite(KINDS, 'corner'))
def test_eager_results_of_every_image_are_those_of_get_bboxes(kind):
    FAMILY.check(toy(kind), OPTIONS)
    stages = FAMILY.stages(seeded(kind), OPTIONS)
    same(kind, run_stages(stages, FAMILY.feeds(pictures(3), True)), pictures(3))


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    in_suite(itertools.product(KINDS, ('torchscript', 'dynamo'))),  # in the suite: test_query_files.py
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    model = seeded(kind)
    chosen = options_of(family='corner', dynamic=True, exporter=exporter)
    chosen = chosen.replace(opset=default_opset(model, exporter))
    run = exported(FAMILY, model, chosen, pictures(1))
    for prepared in (pictures(3, (192, 256), 9), pictures(2, (250, 161), 3)):
        same(kind, run(prepared), prepared)


@pytest.mark.parametrize('mode', AXES)
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (40, 33)])
def test_pooling_by_steps_is_that_of_mmcv(mode, size):
    x, pool = torch.randn(2, 3, *size), CornerPool(mode)
    wanted = pool(x)
    replace_class(pool)
    assert torch.equal(pool(x), wanted)


def test_without_pairs_results_are_empty():
    model = copy.deepcopy(seeded())
    model.bbox_head.test_cfg.distance_threshold = -1.0
    outputs = run_stages(FAMILY.stages(model, OPTIONS), FAMILY.feeds(pictures(1), True))
    assert [len(one) for one in detections(FULL, outputs, {})] == [0]
    assert [len(one) for one in FAMILY.reference(model).results(pictures(1), True)] == [0]


REFUSED = {
    'test_cfg.corner_topk=20': dict(corner_topk=20),
    'test_cfg.local_maximum_kernel=2': dict(local_maximum_kernel=2),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_is_not_exported_is_refused_by_the_name_of_the_entry(said):
    cfg = toy()
    cfg.model.test_cfg.update(REFUSED[said])
    with pytest.raises(ConfigError, match=said) as refused:
        find_family(cfg).check(cfg, OPTIONS)
    assert cfg.filename in str(refused.value) and '\n' not in str(refused.value)
