"""`--paste-masks`: masks of the size of the original in the graph, as numpy and mmdet paste them."""

import types

import numpy as np
import onnxruntime
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.exporting import export
from mmdeploy_ext.families.parts.pasting import Paste
from mmdeploy_ext.families.parts.runtime.pasted_masks import paste
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.tasks import task_module
from toy_two_stage import family_of, images, options_of, run_stages, seeded, toy

FACTS = types.SimpleNamespace(mask_thr=0.5, num_things=None)
METADATA = types.SimpleNamespace(form='full', options={}, postprocess=FACTS)
BOXES = [
    [0, 0, 80, 60],
    [79.9, 10, 80, 40],
    [5, 5, 5, 25],
    [5, 7, 40, 7],
    [5.5, 7.5, 5.5, 7.5],
    [-9, -9, 3, 2],
    [10, 10, 11, 11],
    [3.3, 4.7, 50.2, 31.9],
]


def session(module, example, exporter, names, dynamic):
    opset = 18 if exporter == 'dynamo' else 17
    model = export.export_module(
        module,
        example,
        exporter=exporter,
        opset=opset,
        input_names=names,
        output_names=('masks',),
        dynamic=dynamic,
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_masks_of_a_graph_are_those_of_numpy_pixel_by_pixel_also_at_borders_and_without_an_area(exporter):
    draw = np.random.default_rng(0)
    names = 'dets', 'scale_factor', 'ori_shape', 'box_masks'
    coarse = draw.random((1, 8, 7, 7), np.float32).repeat(4, 2).repeat(4, 3)
    masks = (coarse + draw.random((1, 8, 28, 28), np.float32)) / 2
    dets = np.c_[BOXES, np.ones(8)].astype(np.float32)[None]
    given = dict(
        dets=dets, scale_factor=np.ones((1, 4), np.float32), ori_shape=np.array([[60, 80]]), box_masks=masks
    )
    example = tuple(torch.from_numpy(given[name]) for name in names)
    dynamic = {'dets': {0: 'B', 1: 'n'}, 'box_masks': {0: 'B', 1: 'n'}, 'scale_factor': {0: 'B'}}
    run = session(Paste(0.5), example, exporter, names, {**dynamic, 'ori_shape': {0: 'B'}})
    (found,) = run.run(None, given)
    wanted = paste(masks[0], dets[0, :, :4], 60, 80, 0.5)
    assert found.dtype == bool and found.shape == (1, 8, 60, 80) and 0 < wanted.mean() < 1
    assert np.count_nonzero(found[0] != wanted) <= 2
    assert torch.equal(Paste(0.5)(*example)[0], torch.from_numpy(found))
    none = dict(given, dets=dets[:, :0], box_masks=masks[:, :0], ori_shape=np.array([[31, 17]]))
    assert run.run(None, none)[0].shape == (1, 0, 31, 17)
    both = {name: np.concatenate([array] * 2) for name, array in given.items()}
    both['ori_shape'] = np.array([[60, 50], [40, 80]])
    (found,) = run.run(None, both)
    assert found.shape == (2, 8, 60, 80) and np.count_nonzero(found[1] != wanted) <= 2


def outputs_of(kind, model, prepared, form='full', plant=None):
    family = family_of(kind)
    options = options_of(kind, form=form, batch=len(prepared), paste_masks=True)
    family.check(toy(kind), options)
    stages = family.stages(model, options)
    if plant is not None:
        plant(stages[-1].module)
    return run_stages(stages, family.feeds(prepared, True))


def matched(kind, model, outputs, prepared):
    family = family_of(kind)
    found = results_of(family.name, METADATA, outputs, family.feeds(prepared, True))
    wanted = family.reference(model).results(prepared, True)
    assert [one.masks.shape[1:] for one in found] == [one.masks.shape[1:] for one in wanted]
    match = task_module(family.task).match_detections
    return [match('image', one, other) for one, other in zip(wanted, found, strict=True)]


@pytest.mark.parametrize('kind', ['mask', pytest.param('cascade_mask', marks=pytest.mark.matrix)])
def test_pasted_masks_of_every_image_of_a_batch_are_mmdets(kind):
    prepared = images(3)
    outputs = outputs_of(kind, seeded(kind), prepared)
    assert outputs['masks'].dtype == bool and outputs['masks'].shape[2:] != (28, 28)
    rows = matched(kind, seeded(kind), outputs, prepared)
    assert all(row.passed and row.reference >= 15 for row in rows)


def threshold(module):
    module.threshold = 0.45


def next_box(module):
    forward = module.forward
    module.forward = lambda dets, *more: forward(dets.roll(1, 1), *more)


@pytest.mark.parametrize('plant', [threshold, next_box], ids=lambda plant: plant.__name__)
def test_a_fault_of_pasting_is_refused(plant):
    prepared = images(2)
    outputs = outputs_of('mask', seeded('mask'), prepared, plant=plant)
    assert not all(row.passed for row in matched('mask', seeded('mask'), outputs, prepared))


def test_a_dynamic_file_pastes_at_sizes_and_batches_that_it_never_saw():
    family, model = family_of('mask'), seeded('mask')
    options = options_of('mask', dynamic=True, paste_masks=True)
    example = {name: torch.from_numpy(one) for name, one in family.feeds(images(1), True).items()}
    spec = family.spec(model, options)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    graph = export.export_stages(family.stages(model, options), example, spec, options)
    run = onnxruntime.InferenceSession(graph.SerializeToString(), quiet, providers=['CPUExecutionProvider'])
    for prepared in (images(2, seed=9), images(1, (256, 160), 3)):
        feeds = family.feeds(prepared, True)
        outputs = dict(zip(spec.output_names, run.run(spec.output_names, feeds), strict=True))
        assert all(row.passed and row.reference for row in matched('mask', model, outputs, prepared))
