"""Panoptic FPN's maps against mmdet's own `simple_test`: both forms, exported; the trained toy."""

import types

import numpy as np
import onnxruntime
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, check, exported, of_one_size, run_stages
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.postprocess import panoptic
from mmdeploy_ext.runtime.panoptic import fuse_instances
from mmdeploy_ext.upstream.operators.operator import operators_as
from toy_two_stage import family_of, images, options_of, seeded, toy

FAMILY = family_of('panoptic')


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_eager_segments_of_every_image_are_those_of_simple_test(form):
    model, prepared, options = seeded('panoptic'), of_one_size(images(2)), options_of('panoptic', form=form)
    FAMILY.check(toy('panoptic'), options)
    outputs = run_stages(FAMILY.stages(model, options), FAMILY.feeds(prepared, True))
    check(FAMILY, model, outputs, prepared, 12, form=form)


@pytest.mark.matrix
@pytest.mark.parametrize('exporter', EXPORTERS)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(exporter):
    model, options = seeded('panoptic'), options_of('panoptic', dynamic=True, exporter=exporter)
    _, run = exported(FAMILY, model, options, of_one_size(images(1)))
    prepared = of_one_size(images(2, (256, 160), 3))
    check(FAMILY, model, run(FAMILY.feeds(prepared, True)), prepared)


def laid_one_by_one(masks, labels, overlap):
    """Return what `LAY_MASKS` gives of one image, pixel sets instead of arrays."""
    laid, number = np.zeros(masks.shape[1:], np.int64), 0
    taken = set()
    for mask, label in zip(masks, labels, strict=True):
        own = set(map(tuple, np.argwhere(mask)))
        if not own or len(own & taken) / (len(own) + 1e-5) > overlap:
            continue
        number += 1
        for place in own - taken:
            laid[place] = label + 1000 * number
        taken |= own
    return laid


def cases():
    draw = np.random.default_rng(0)
    masks = draw.random((2, 7, 9, 11)) > 0.7
    masks[0, 3], masks[1, 4:] = False, False
    masks[1, 1] = masks[1, 0]
    yield masks, draw.integers(0, 6, (2, 7))
    yield masks[:, :1], draw.integers(0, 6, (2, 1))
    yield masks[:, :0], np.zeros((2, 0), np.int64)


def test_masks_are_laid_as_set_by_set_in_pytorch_in_numpy_and_in_a_graph():
    class Laid(torch.nn.Module):
        def forward(self, masks, labels):
            return (panoptic.LAY_MASKS(masks, labels, 0.5),)

    example = tuple(torch.from_numpy(one) for one in next(cases()))
    axes = dict(masks={0: 'B', 1: 'n'}, labels={0: 'B', 1: 'n'})
    facts = types.SimpleNamespace(num_classes=6, num_things=6, mask_overlap=0.5, stuff_area_limit=0)
    for form in ('standard', 'function'):
        with operators_as(form):
            names = dict(input_names=('masks', 'labels'), output_names=('laid',))
            graph = export.export_module(Laid(), example, opset=17, dynamic=axes, **names)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
        for masks, labels in cases():
            wanted = np.stack([laid_one_by_one(*pair, 0.5) for pair in zip(masks, labels, strict=True)])
            (found,) = session.run(None, dict(masks=masks, labels=labels))
            eager = panoptic.LAY_MASKS(torch.from_numpy(masks), torch.from_numpy(labels), 0.5)
            assert (found == wanted).all() and (eager.numpy() == wanted).all()
            for one, own, right in zip(masks, labels, wanted, strict=True):
                fused = fuse_instances(one, own, np.zeros((1, *one.shape[1:]), np.float32), facts)
                assert (np.where(fused == 6, 0, fused) == right).all()
