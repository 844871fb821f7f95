"""Panoptic FPN's maps against mmdet's own `simple_test`: both forms, exported, and refusals."""

import copy
import dataclasses
import functools
import types

import numpy as np
import onnxruntime
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.errors import ConfigError, ModelFileError
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.ops.operator import operators_as
from mmdeploy_ext.exporting.postprocess import panoptic
from mmdeploy_ext.families.two_stage.runtime import detections
from mmdeploy_ext.runtime.panoptic import fuse_instances
from mmdeploy_ext.tasks.panoptic import match_detections
from toy_two_stage import family_of, images, options_of, run_stages, seeded, toy

FAMILY, CLASSES = family_of('panoptic'), 11
ORIGINAL = (150, 210)


def pictures(count, size=(192, 256), seed=5):
    """Return pictures of one original size, whose contents and scales in the input differ."""
    found = []
    for one in images(count, size, seed):
        scale = np.array([one.img_shape[1] / ORIGINAL[1], one.img_shape[0] / ORIGINAL[0]] * 2, np.float32)
        found.append(dataclasses.replace(one, ori_shape=ORIGINAL, scale_factor=scale))
    return found


def rows(form, outputs, prepared, wanted):
    file = types.SimpleNamespace(form=form, postprocess=FAMILY.facts(seeded('panoptic')))
    arrays = {name: np.asarray(one) for name, one in outputs.items()}
    found = detections(file, arrays, FAMILY.feeds(prepared, True))
    return [match_detections('image', one, other) for one, other in zip(wanted, found, strict=True)]


@functools.cache
def reference():
    return FAMILY.reference(seeded('panoptic')).results(pictures(2), True)


def judged(form='full'):
    """Return whether the segments of all images pass, by the code as it is now."""
    options, prepared = options_of('panoptic', form=form, batch=2), pictures(2)
    outputs = run_stages(FAMILY.stages(seeded('panoptic'), options), FAMILY.feeds(prepared, True))
    try:
        return all(row.passed for row in rows(form, outputs, prepared, reference()))
    except ModelFileError:  # a class that the model does not have
        return False


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_eager_segments_of_every_image_are_those_of_simple_test(form):
    FAMILY.check(toy('panoptic'), options_of('panoptic', form=form))
    for one in reference():
        assert (one.labels < 6).sum() >= 10 and (one.labels >= 6).sum() >= 2
    assert judged(form)


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(exporter):
    model, opset = seeded('panoptic'), 18 if exporter == 'dynamo' else 17
    options = options_of('panoptic', dynamic=True, exporter=exporter, opset=opset)
    feeds = FAMILY.feeds(pictures(1), True)
    example = {name: torch.from_numpy(array) for name, array in feeds.items()}
    graph = export.export_stages(FAMILY.stages(model, options), example, FAMILY.spec(model, options), options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    for prepared in (pictures(2), pictures(1, (256, 160), 3)):
        wanted = FAMILY.reference(model).results(prepared, True)
        (found,) = session.run(['panoptic'], FAMILY.feeds(prepared, True))
        for row in rows('full', dict(panoptic=found), prepared, wanted):
            assert row.passed and row.reference, row


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


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda model: model.panoptic_fusion_head.update(num_stuff_classes=9), '6 things and 9 stuff'),
        (lambda model: model.test_cfg.panoptic.update(mask_overlap=None), 'mask_overlap'),
        (lambda model: model.test_cfg.update(panoptic=None), 'test_cfg.panoptic'),
    ],
)
def test_what_cannot_be_fused_is_refused_by_name(change, said):
    cfg = copy.deepcopy(toy('panoptic'))
    change(cfg.model)
    with pytest.raises(ConfigError, match=said):
        FAMILY.check(cfg, options_of('panoptic'))
