"""Detectors of queries against mmdet's own `simple_test`: eager, exported, and what is refused."""

import itertools
import types

import pytest
import torch
from mmdet.models.utils import SinePositionalEncoding

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from marking import in_suite
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.parts.padding import PaddedMap, SinePositions
from mmdeploy_ext.families.parts.runtime.padded_results import detections
from mmdeploy_ext.tasks.bbox2d import match_detections
from toy_query import KINDS, exported, images, options_of, run_stages, seeded, toy

FULL = types.SimpleNamespace(form='full', options={})
FAMILY = FAMILIES['query']


def same(kind, outputs, prepared, least=20):
    """Assert that results are those of `simple_test`, and that every image has some of several classes."""
    found = detections(FULL, outputs, {})
    wanted = FAMILY.reference(seeded(kind)).results(prepared, True)
    assert len(found) == len(wanted) == len(prepared)
    for one, other in zip(wanted, found, strict=True):
        row = match_detections('image', one, other)
        assert row.passed and row.reference >= least, row
        assert len(set(one.labels.tolist())) > 1


@pytest.mark.parametrize('kind', KINDS)
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    prepared, cfg = images(3), toy(kind)
    FAMILY.build(cfg)
    FAMILY.check(cfg, options_of())  # also once mmdet has built the model
    same(kind, run_stages(FAMILY.stages(seeded(kind), options_of()), FAMILY.feeds(prepared, True)), prepared)


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    in_suite(
        itertools.product(KINDS, ('torchscript', 'dynamo')),
        ('detr', 'torchscript'),  # that of two stages is DINO's, see test_dino.py
    ),
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    options = options_of(dynamic=True, exporter=exporter)
    options = options.replace(opset=18) if exporter == 'dynamo' else options
    run = exported(FAMILY, seeded(kind), options, images(1))
    for prepared in (images(3, seed=9), images(2, (250, 161), 3)):
        same(kind, run(prepared), prepared)


@pytest.mark.parametrize('sizes', [(1, 1), (7, 5), (32, 31), (33, 640), (800, 1333)])
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


def change(path, value):
    """Return what sets a key of a config."""

    def apply(model):
        *keys, last = path.split('.')
        for key in keys:
            model = model[key]
        model[last] = value

    return apply


REFUSED = {
    'LearnedPositionalEncoding': change(
        'bbox_head.positional_encoding', dict(type='LearnedPositionalEncoding', num_feats=16)
    ),
    'max_per_img=400': change('test_cfg.max_per_img', 400),
    'encoder: self_attn is MultiheadAttention': change(
        'bbox_head.transformer.encoder.transformerlayers.attn_cfgs',
        dict(type='MultiheadAttention', embed_dims=32, num_heads=4),
    ),
    'RetinaHead': change('bbox_head', dict(type='RetinaHead', num_classes=6, in_channels=32)),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(said):
    cfg = toy('plain')
    REFUSED[said](cfg.model)
    with pytest.raises(ConfigError, match=said) as refused:
        find_family(cfg).check(cfg, options_of())
    assert cfg.filename in str(refused.value) and '\n' not in str(refused.value)
