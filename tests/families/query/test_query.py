"""Detectors of queries against mmdet's own `simple_test`: eager, exported, and what is refused."""

import copy
import itertools

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.utils import SinePositionalEncoding
from mmdet.models.utils import transformer as mmdet_transformer

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, changed, check, exported, of_one_size, run_stages
from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common.padding import PaddedMap, SinePositions
from mmdeploy_ext.families.traced.family import TracedFamily
from toy_query import KINDS, MASKS, REGIONS, family_of, images, options_of, seeded, toy

ALL = (*KINDS, 'two_stage', *MASKS, *REGIONS)
EXPORTED = 'instances'
"""Kind that the suite exports; test_dino.py has traces of two stages."""
LEAST = dict(refine=15, two_stage=1, instances=10, panoptic=2, maskformer=2)
"""Results of a picture, of kinds that have less than 20."""


def pictures(kind, *chosen):
    return of_one_size(images(*chosen)) if kind in MASKS else images(*chosen)


def compared(kind, outputs, prepared, **how):
    family, model = family_of(kind), seeded(kind)
    check(family, model, outputs, prepared, LEAST.get(kind, 20), **how)
    labels = [one.labels for one in family.reference(model).results(prepared, True)]
    assert len(np.unique(np.concatenate(labels))) > 1


def test_eager_results_of_every_image_are_those_of_simple_test():
    kind = 'maskformer'
    family, prepared, cfg = family_of(kind), pictures(kind, 2), toy(kind)
    family.build(cfg)
    family.check(cfg, options_of())  # also once mmdet has built the model
    outputs = run_stages(family.stages(seeded(kind), options_of()), family.feeds(prepared, True))
    compared(kind, outputs, prepared)


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    in_suite(
        [*itertools.product(ALL, EXPORTERS[:1]), *itertools.product(MASKS, EXPORTERS[1:])],
        (EXPORTED, 'torchscript'),
    ),
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    family, pasted = family_of(kind), dict(paste_masks=True) if kind == 'regions_masks' else {}
    options = options_of(dynamic=True, exporter=exporter, family=family.name, **pasted)
    family.check(toy(kind), options)
    if family.name == 'traced':
        family.layout(seeded(kind), traced=True)
    _, run = exported(family, seeded(kind), options, pictures(kind, 1))
    prepared = pictures(kind, 3, (256, 160), 3)
    compared(kind, run(family.feeds(prepared, True)), prepared, **pasted)


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
POINTS = dict(type='MultiScaleDeformableAttention', embed_dims=32, num_heads=4)
ENCODER = 'panoptic_head.pixel_decoder.encoder.transformerlayers.attn_cfgs'


@pytest.mark.parametrize(
    ('kind', 'path', 'value', 'said'),
    [
        ('maskformer', 'panoptic_head.positional_encoding', LEARNED, 'LearnedPositionalEncoding'),
        ('instances', 'test_cfg.max_per_image', 400, 'max_per_image=400'),
        ('maskformer', ENCODER, POINTS, 'encoder: self_attn is MultiScaleDeformableAttention'),
    ],
)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(kind, path, value, said):
    cfg = changed(toy(kind), path, value)
    with pytest.raises(ConfigError, match=said):
        find_family(cfg).check(cfg, options_of())


ONE_TO_ONE = 25


def decoder_with(transformer, **changes):
    """Return a hook that gives a decoder other arguments: those of the forks' own `forward`."""
    return transformer.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {key: change(kwargs) for key, change in changes.items()},
        ),
        with_kwargs=True,
    )


class HybridBranchDeformableDETRHead(DeformableDETRHead):
    """Of H-DETR: queries behind the first ones see each other alone, and give results of a training."""

    def forward(self, maps, metas):
        mask = torch.zeros(self.num_query, self.num_query, dtype=torch.bool)
        mask[ONE_TO_ONE:, :ONE_TO_ONE] = mask[:ONE_TO_ONE, ONE_TO_ONE:] = True
        with decoder_with(self.transformer, attn_masks=lambda kwargs: [mask, None]):
            logits, boxes, *rest = super().forward(maps, metas)
        return logits[:, :, :ONE_TO_ONE], boxes[:, :, :ONE_TO_ONE], *rest


class MixedTransformer(mmdet_transformer.DeformableDetrTransformer):
    """The contents of its queries are learned; their positions are those of tokens."""

    def forward(self, *args, **kwargs):
        learned = self.learned.weight[:, None].expand(-1, len(args[0][0]), -1)
        with decoder_with(self, query=lambda kwargs: learned):
            return super().forward(*args, **kwargs)


@pytest.mark.matrix
def test_queries_of_a_head_that_only_train_are_not_in_the_graph():
    family, model = TracedFamily(), copy.deepcopy(seeded('two_stage'))
    head, transformer = model.bbox_head, model.bbox_head.transformer
    learned = torch.nn.Embedding(head.num_query, 256)
    with torch.no_grad():
        learned.weight.copy_(torch.randn(head.num_query, 256, generator=torch.Generator().manual_seed(3)))
    head.__class__, transformer.__class__ = HybridBranchDeformableDETRHead, MixedTransformer
    transformer.learned = head.query_embedding = learned
    family.layout(model, traced=True)
    _, run = exported(family, model, options_of(dynamic=True, family='traced'), images(1))
    prepared = images(2)
    check(family, model, run(family.feeds(prepared, True)), prepared, 20)
