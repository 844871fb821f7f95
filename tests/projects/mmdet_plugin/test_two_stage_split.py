"""Two-stage detectors in two graphs: pictures to proposals, regions to results, each with its tensors."""

import copy
import dataclasses
import types

import numpy as np
import onnxruntime
import pytest
import torch

from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.exporting import export
from mmdeploy_ext.proof.tasks import task_module
from toy_two_stage import KINDS, family_of, images, options_of, run_stages, seeded, toy

ONE = dict(rpn='the model has no roi_head', fast='the model has no rpn_head') | dict.fromkeys(
    ('htc', 'scnet', 'grid', 'panoptic'), 'made of more than regions'
)
ONE |= dict.fromkeys(('guided', 'guided_alone', 'staged'), '(RPN|no roi_head)')
"""Kinds that are one graph, and what is said of them."""
WHOLE = [kind for kind in KINDS if kind not in ONE]
MASKS = types.SimpleNamespace(form='regions', options={}, postprocess=dict(mask_thr=0.5))


def feeds_of(family, model, prepared, form):
    feeds = family.feeds(prepared, True)
    return feeds | family.inner_inputs(model, feeds, form)


def rows_of(kind, form, outputs, prepared, model=None):
    """Return level 2 of what a graph gave."""
    family, model = family_of(kind), model or seeded(kind)
    spec, feeds = family.spec(model, options_of(kind, form=form)), feeds_of(family, model, prepared, form)
    expected = family.reference_tensors(model, feeds, form)
    valued = {tensor.name for tensor in spec.outputs if tensor.compare == 'values'}
    expected = family.choose_as(model, feeds, outputs, expected)
    assert expected.keys() == valued
    return compare_tensors(expected, {name: outputs[name] for name in valued}, spec)


def results_of(kind, form, outputs, prepared, model=None):
    """Return level 3: rows of every image."""
    family, model = family_of(kind), model or seeded(kind)
    metadata, feeds = copy.copy(MASKS), feeds_of(family, model, prepared, form)
    metadata.form = form
    found = family.results(model, metadata, outputs, feeds, prepared, True)
    wanted = family.reference_detections(model, prepared, True)
    match = task_module(family.task).match_detections
    return [match('image', one, other) for one, other in zip(wanted, found, strict=True)]


@pytest.mark.parametrize('form', ['proposals', 'regions'])
@pytest.mark.parametrize('kind', WHOLE)
def test_the_tensors_and_the_results_of_both_graphs_are_those_of_mmdet(kind, form):
    family, model, prepared = family_of(kind), seeded(kind), images(2)
    feeds = feeds_of(family, model, prepared, form)
    options = options_of(kind, form=form, batch=2)
    family.check(toy(kind), options)
    outputs = run_stages(family.stages(model, options), feeds)
    spec = family.spec(model, options)
    for tensor in spec.outputs:
        shape = outputs[tensor.name].shape
        assert all(
            isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, shape, strict=True)
        )
    rows = rows_of(kind, form, outputs, prepared)
    stages = 3 if 'cascade' in kind else 1
    names = {'region_features_0', 'cls_score_0', f'cls_score_{stages - 1}'}
    names = names if form == 'regions' else {'features_0', 'features_3', 'rpn_cls_0', 'rpn_reg_4'}
    assert names <= {row.tensor for row in rows} and all(row.passed for row in rows), rows
    matched = results_of(kind, form, outputs, prepared)
    assert all(row.passed and row.reference >= 15 for row in matched)


def session_of(kind, form, exporter='torchscript'):
    """Return what runs a dynamic file, and the names of its inputs."""
    family, model = family_of(kind), seeded(kind)
    opset = 18 if exporter == 'dynamo' else 17
    options = options_of(kind, form=form, dynamic=True, exporter=exporter, opset=opset)
    (graph,) = family.graphs(model, options)
    feeds = {name: torch.from_numpy(array) for name, array in family.feeds(images(1), True).items()}
    graph_model = export.export_stages(graph.stages, graph.example or feeds, graph.spec, options)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph_model.SerializeToString(), quiet, providers=['CPUExecutionProvider']
    )
    names = graph.spec.output_names

    def run(feeds):
        known = {name: feeds[name] for name in graph.spec.input_names}
        return dict(zip(names, session.run(names, known), strict=True))

    return run


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    [('faster', 'torchscript'), ('cascade_mask', 'torchscript')]
    + [
        pytest.param(kind, exporter, marks=pytest.mark.matrix)
        for kind in WHOLE
        for exporter in ('torchscript', 'dynamo')
        if (kind, exporter) not in (('faster', 'torchscript'), ('cascade_mask', 'torchscript'))
    ],
)
def test_two_files_one_after_the_other_give_the_results_at_sizes_and_batches_that_they_never_saw(
    kind, exporter
):
    family = family_of(kind)
    first, second = (session_of(kind, form, exporter) for form in ('proposals', 'regions'))
    for prepared in (images(3, seed=9), images(2, (256, 160), 3)):
        feeds = family.feeds(prepared, True)
        between = first(feeds)
        assert all(row.passed for row in rows_of(kind, 'proposals', between, prepared))
        outputs = second(feeds | between)
        found = family.detections(MASKS, outputs, feeds)
        wanted = family.reference_detections(seeded(kind), prepared, True)
        for one, other in zip(wanted, found, strict=True):
            row = task_module(family.task).match_detections('image', one, other)
            assert row.passed and row.reference, row
        given = second(feeds_of(family, seeded(kind), prepared, 'regions'))
        assert all(row.passed for row in rows_of(kind, 'regions', given, prepared))


def test_a_detector_that_is_one_graph_is_refused():
    options = options_of('faster', form='regions')
    for kind, said in ONE.items():
        with pytest.raises(UsageError, match=f'--postprocess regions: .*{said}'):
            family_of(kind).check(toy(kind), options)
    cfg = toy()
    cfg.model.test_cfg.rpn.min_bbox_size = -1
    with pytest.raises(ConfigError, match=r'test_cfg\.rpn\.min_bbox_size=-1: expected 0 or more'):
        family_of('faster').check(cfg, options_of('faster', form='proposals'))


@pytest.mark.parametrize('kind', ['faster', 'mask'])
def test_a_file_of_proposals_says_that_it_gives_no_detections(kind):
    metadata = copy.copy(MASKS)
    metadata.form = 'proposals'
    with pytest.raises(ModelFileError, match='feed its outputs, by their names, to the file of form regions'):
        family_of(kind).detections(metadata, {}, {})


# --- faults ---------------------------------------------------------------------------------------------


def layers(form, branch=0):
    return form.boxes.stages[branch].pool.extractor.roi_layers


def not_aligned(form):
    for layer in layers(form):
        layer.aligned = False


def sampling_ratio(form):
    for layer in layers(form):
        layer.sampling_ratio = 2


def scale_of_a_level(form):
    layers(form)[1].spatial_scale = 1 / 7


def shifted_levels(form):
    form.boxes.stages[0].pool.begins = [begin * 2 for begin in form.boxes.stages[0].pool.begins]


def features_of_the_first_image(form):
    pool = form.boxes.stages[0].pool
    forward = pool.forward
    pool.forward = lambda maps, boxes, images, *more: forward(maps, boxes, images * 0, *more)


def deviation_of_the_second_stage(form):
    form.boxes.stages[1].head.bbox_coder.stds = [0.1, 0.1, 0.2, 0.2]


def features_of_the_second_stage(form):
    for layer in layers(form, 1):
        layer.aligned = False


def swapped_classes(form):
    forward = form.boxes.stages[0].forward

    def swapped(*given):
        scores, *others = forward(*given)
        return scores[:, [1, 0, *range(2, scores.shape[1])]], *others

    form.boxes.stages[0].forward = swapped


REGION_FAULTS = {
    not_aligned: ('faster', 'region_features_0'),
    sampling_ratio: ('faster', 'region_features_0'),
    scale_of_a_level: ('faster', 'region_features_0'),
    shifted_levels: ('faster', 'region_features_0'),
    features_of_the_first_image: ('faster', 'region_features_0'),
    swapped_classes: ('faster', 'cls_score_0'),
    deviation_of_the_second_stage: ('cascade', 'regions_2'),
    features_of_the_second_stage: ('cascade', 'region_features_1'),
}
"""Fault -> kind, and the first tensor that differs."""


@pytest.mark.parametrize('plant', REGION_FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_of_the_second_graph_is_told_by_the_tensor_in_which_it_is(plant):
    kind, name = REGION_FAULTS[plant]
    family, model, prepared = family_of(kind), seeded(kind), images(2)
    stages = family.stages(model, options_of(kind, form='regions', batch=2))
    plant(stages[-1].module)
    feeds = feeds_of(family, model, prepared, 'regions')
    rows = rows_of(kind, 'regions', run_stages(stages, feeds), prepared)
    assert next(row.tensor for row in rows if not row.passed) == name


def proposals_of_the_first_image(form):
    choose = form.proposals.forward
    form.proposals.forward = lambda *given: tuple(one[:1].expand_as(one) for one in choose(*given))


def deviation_of_proposals(form):
    form.proposals.facts['coder'] = dict(form.proposals.facts['coder'], stds=[1.0, 1.0, 1.1, 1.0])


def fewer_proposals(form):
    form.proposals.config = dataclasses.replace(form.proposals.config, max_per_img=60)


def unclipped(form):
    form.proposals.facts['clip'] = False


@pytest.mark.parametrize(
    'plant',
    [proposals_of_the_first_image, deviation_of_proposals, fewer_proposals, unclipped],
    ids=lambda plant: plant.__name__,
)
@pytest.mark.parametrize('kind', ['faster', 'mask'])
def test_a_fault_of_the_first_graph_is_told_by_what_mmdets_heads_make_of_its_proposals(kind, plant):
    family, model, prepared = family_of(kind), seeded(kind), images(2)
    stages = family.stages(model, options_of(kind, form='proposals', batch=2))
    plant(stages[-1].module)
    outputs = run_stages(stages, family.feeds(prepared, True))
    assert all(row.passed for row in rows_of(kind, 'proposals', outputs, prepared))
    assert not all(row.passed for row in results_of(kind, 'proposals', outputs, prepared))


def test_a_layer_of_the_head_of_proposals_with_other_weights_is_told_by_its_tensors():
    family, model, prepared = family_of('faster'), copy.deepcopy(seeded('faster')), images(2)
    with torch.no_grad():
        model.rpn_head.rpn_reg.weight[0] *= 1.01
    stages = family.stages(model, options_of('faster', form='proposals', batch=2))
    outputs = run_stages(stages, family.feeds(prepared, True))
    failed = {row.tensor for row in rows_of('faster', 'proposals', outputs, prepared) if not row.passed}
    assert failed and failed <= {f'rpn_reg_{level}' for level in range(5)}
    assert np.all([name in outputs for name in failed])
