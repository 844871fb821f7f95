"""CornerNet and CentripetalNet against mmdet's own `get_bboxes`: eager, exported, what is refused."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from mmcv.ops import CornerPool

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, changed, check, exported, matched, run_stages, seeded_toy
from made_once import made_once
from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.copy import AXES, replace_class
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.corner.graphs import CornerFullForm
from toy_corner import KINDS, toy
from toy_query import images, options_of

FAMILY = FAMILIES['corner']
OPTIONS = options_of(family='corner')


@made_once
def seeded(kind='corner'):
    return seeded_toy(toy(kind), FAMILY)


def pictures(*chosen):
    """Return pictures with padding above and left of their contents, too."""
    return [dataclasses.replace(one, border=(4 * index, 6)) for index, one in enumerate(images(*chosen))]


@pytest.mark.parametrize('kind', in_suite(KINDS, 'corner'))
def test_eager_results_of_every_image_are_those_of_get_bboxes(kind):
    FAMILY.check(toy(kind), OPTIONS)
    outputs = run_stages(FAMILY.stages(seeded(kind), OPTIONS), FAMILY.feeds(pictures(2), True))
    check(FAMILY, seeded(kind), outputs, pictures(2), 12)


def test_pairs_of_centripetal_shifts_are_those_of_mmdet():
    cfg = toy('centripetal')
    head, draw = (
        detector_parts.tested_head(cfg, 'bbox_head', cfg.model.test_cfg),
        torch.Generator().manual_seed(0),
    )
    corners, sides = ('tl', 'br'), dict(heat=6, off=2, shift=2)
    maps = {
        f'{corner}_{name}': torch.randn(2, count, 30, 42, generator=draw)
        for corner in corners
        for name, count in sides.items()
    }
    for corner in corners:  # logarithms of cells: boxes below and above `LARGE`
        maps[f'{corner}_shift'] = maps[f'{corner}_shift'] * 0.15 + torch.tensor([1.2, 2.1]).view(2, 1, 1, 1)
    scale, borders = np.float32([1.5, 1.25, 1.5, 1.25]), np.float32([[2, 3], [0, 5]])
    meta = dict(img_shape=(118, 164, 3), pad_shape=(120, 168, 3), scale_factor=scale)
    metas = [dict(meta, border=[top, 0, left, 0]) for top, left in borders]
    names = (f'{corner}_{name}' for name in ('heat', 'off', 'off', 'shift') for corner in corners)
    wanted = head.get_bboxes(*([maps[name].clone()] for name in names), metas, rescale=True)
    given = torch.zeros(2, 3, 120, 168), torch.from_numpy(scale)[None].repeat(2, 1), torch.from_numpy(borders)
    found = CornerFullForm(head)(*given, *(maps[f'{corner}_{name}'] for corner in corners for name in sides))
    for rows, labels, (wanted_rows, wanted_labels) in zip(*found, wanted, strict=True):
        count = int((wanted_rows[:, 4] > 0).sum())
        assert 5 < count == (labels >= 0).sum()
        torch.testing.assert_close(rows[:count], wanted_rows[:count, :5], rtol=1e-4, atol=1e-3)
        assert torch.equal(labels[:count], wanted_labels[:count].long())


@pytest.mark.matrix
@pytest.mark.parametrize(('kind', 'exporter'), list(itertools.product(KINDS, EXPORTERS)))
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    options = options_of(family='corner', dynamic=True, exporter=exporter)
    _, run = exported(FAMILY, seeded(kind), options, pictures(1))
    prepared = pictures(3, (250, 161), 3)
    check(FAMILY, seeded(kind), run(FAMILY.feeds(prepared, True)), prepared, 12)


@pytest.mark.parametrize('mode', AXES)
@pytest.mark.parametrize('size', [(1, 1), (40, 33)])
def test_pooling_by_steps_is_that_of_mmcv(mode, size):
    x, pool = torch.randn(2, 3, *size), CornerPool(mode)
    wanted = pool(x)
    replace_class(pool)
    assert torch.equal(pool(x), wanted)


def test_without_pairs_results_are_empty():
    model = copy.deepcopy(seeded())
    model.bbox_head.test_cfg.distance_threshold = -1.0
    outputs = run_stages(FAMILY.stages(model, OPTIONS), FAMILY.feeds(pictures(1), True))
    (row,) = matched(FAMILY, model, outputs, pictures(1))
    assert row.passed and row.reference == 0


@pytest.mark.parametrize(('key', 'value'), [('corner_topk', 20), ('local_maximum_kernel', 2)])
def test_what_is_not_exported_is_refused_by_the_name_of_the_entry(key, value):
    with pytest.raises(ConfigError, match=f'test_cfg.{key}={value}'):
        FAMILY.check(changed(toy(), f'test_cfg.{key}', value), OPTIONS)
