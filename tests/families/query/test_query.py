"""Detectors of queries against mmdet's own `simple_test`: eager, exported, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from mmdet.models.utils import SinePositionalEncoding

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, changed, check, exported, of_one_size, run_stages
from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common.padding import PaddedMap, SinePositions
from toy_query import KINDS, MASKS, REGIONS, family_of, images, options_of, seeded, toy

ALL = (*KINDS, 'two_stage', *MASKS, *REGIONS)
EXPORTED = 'instances'
"""Kind that the suite exports; test_dino.py has the graph of two stages."""
EAGER = ('detr', 'two_stage', 'regions', 'maskformer')
LEAST = dict(two_stage=1, instances=10, panoptic=2, maskformer=2)
"""Results of a picture, of kinds that have less than 20."""


def pictures(kind, *chosen):
    return of_one_size(images(*chosen)) if kind in MASKS else images(*chosen)


def compared(kind, outputs, prepared, **how):
    family, model = family_of(kind), seeded(kind)
    check(family, model, outputs, prepared, LEAST.get(kind, 20), **how)
    labels = [one.labels for one in family.reference(model).results(prepared, True)]
    assert len(np.unique(np.concatenate(labels))) > 1


@pytest.mark.parametrize('kind', EAGER)
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    family, prepared, cfg = family_of(kind), pictures(kind, 2), toy(kind)
    family.build(cfg)
    family.check(cfg, options_of())  # also once mmdet has built the model
    outputs = run_stages(family.stages(seeded(kind), options_of()), family.feeds(prepared, True))
    compared(kind, outputs, prepared)


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    in_suite(itertools.product(ALL, EXPORTERS), (EXPORTED, 'torchscript')),
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    family, pasted = family_of(kind), dict(paste_masks=True) if kind == 'regions_masks' else {}
    options = options_of(dynamic=True, exporter=exporter, **pasted)
    family.check(toy(kind), options)
    _, run = exported(family, seeded(kind), options, pictures(kind, 1))
    prepared = pictures(kind, 3, (256, 160), 3)
    compared(kind, run(family.feeds(prepared, True)), prepared)


@pytest.mark.parametrize('kind', in_suite(['maskformer', 'panoptic'], 'panoptic'))
def test_tensors_and_segments_of_the_raw_form_are_those_of_mmdet(kind):
    family, model, prepared = family_of(kind), seeded(kind), pictures(kind, 2)
    feeds, options = family.feeds(prepared, True), options_of(form='raw')
    outputs = run_stages(family.stages(model, options), feeds)
    for name, wanted in family.reference(model).tensors(feeds, 'raw').items():
        assert np.abs(outputs[name] - wanted).max() < 1e-5 * np.abs(wanted).max()
    compared(kind, outputs, prepared, form='raw')


@pytest.mark.parametrize('sizes', [(1, 1), (33, 640), (800, 1333)])
def test_masks_of_maps_are_those_that_mmdet_resizes(sizes):
    height, width = sizes
    content = torch.tensor([[height, max(width // 2, 1)], [max(height - 3, 1), width], [1.0, 1.0]])
    masks = torch.ones(3, height, width)
    for one, (rows, columns) in zip(masks, content.long().tolist(), strict=True):
        one[:rows, :columns] = 0
    encoding = SinePositionalEncoding(num_feats=8, normalize=True, offset=-0.5)
    for stride in (4, 8, 32, 64):
        level = torch.zeros(3, 1, -(-height // stride), -(-width // stride))
        wanted = torch.nn.functional.interpolate(masks[None], size=level.shape[2:])[0].bool()
        found = PaddedMap(content, masks[:, None], level)
        inside = found.inside() > 0.5
        assert torch.equal(inside, ~wanted.flatten(1))
        places = encoding(wanted).flatten(2).transpose(1, 2)
        assert torch.allclose(SinePositions(encoding)(found)[inside], places[inside], atol=2e-5)


LEARNED = dict(type='LearnedPositionalEncoding', num_feats=16)
PLAIN = dict(type='MultiheadAttention', embed_dims=32, num_heads=4)
ENCODER = 'bbox_head.transformer.encoder.transformerlayers.attn_cfgs'


@pytest.mark.parametrize(
    ('kind', 'path', 'value', 'said'),
    [
        ('plain', 'bbox_head.positional_encoding', LEARNED, 'LearnedPositionalEncoding'),
        ('plain', 'test_cfg.max_per_img', 400, 'max_per_img=400'),
        ('plain', ENCODER, PLAIN, 'encoder: self_attn is MultiheadAttention'),
        ('plain', 'bbox_head', dict(type='RetinaHead', num_classes=6, in_channels=32), 'RetinaHead'),
        ('regions', 'test_cfg.rcnn.max_per_img', 400, 'rcnn.max_per_img=400'),
        ('regions', 'rpn_head', dict(type='RPNHead', in_channels=32), 'RPNHead'),
    ],
)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(kind, path, value, said):
    cfg = changed(toy(kind), path, value)
    with pytest.raises(ConfigError, match=said):
        find_family(cfg).check(cfg, options_of())
