"""Two-stage detectors in two graphs: pictures to proposals, regions to results, each with its tensors."""

import functools
import types

import onnxruntime
import pytest
import torch

from mmdeploy_ext.contract.comparison import compare_tensors
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.exporting import export
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.tasks import task_module
from toy_two_stage import (
    KINDS,
    TIES,
    check_results,
    family_of,
    images,
    options_of,
    run_stages,
    seeded,
    toy,
    unseen_batches,
)

ONE = dict(rpn='the model has no roi_head', fast='the model has no rpn_head') | dict.fromkeys(
    ('htc', 'scnet', 'grid'), 'made of more than regions'
)
ONE |= dict.fromkeys(('guided', 'guided_alone', 'staged', 'staged_alone'), '(RPN|no roi_head)')
"""Kinds that are one graph, and what is said of them."""
WHOLE = [kind for kind in KINDS if kind not in ONE]


TWO = images(2)


def feeds_of(kind, form, prepared=TWO):
    """Return the inputs of a graph; those of `TWO` are made once."""
    return _feeds_of_two(kind, form) if prepared is TWO else _made_feeds(kind, form, prepared)


@functools.cache
def _feeds_of_two(kind, form):
    return _made_feeds(kind, form, TWO)


def _made_feeds(kind, form, prepared):
    feeds = family_of(kind).feeds(prepared, True)
    return feeds | family_of(kind).reference(seeded(kind)).inner_inputs(feeds, form)


@functools.cache
def wanted_of_two(kind):
    return family_of(kind).reference(seeded(kind)).results(TWO, True)


def rows_of(kind, form, outputs, prepared=TWO):
    """Return level 2 of what a graph gave."""
    family, model = family_of(kind), seeded(kind)
    spec, feeds = family.spec(model, options_of(kind, form=form)), feeds_of(kind, form, prepared)
    expected = family.reference(model).expected_tensors(feeds, outputs, form)
    if expected is None:
        expected = family.reference(model).tensors(feeds, form)
    valued = {tensor.name for tensor in spec.outputs if tensor.compare == 'values'}
    assert expected.keys() == valued
    return compare_tensors(expected, {name: outputs[name] for name in valued}, spec)


def metadata_of(kind, form='regions'):
    facts = family_of(kind).facts(seeded(kind))
    return types.SimpleNamespace(form=form, options={}, postprocess=facts)


def results_of(kind, form, outputs):
    """Return level 3: rows of both images of `TWO`."""
    family, metadata = family_of(kind), metadata_of(kind, form)
    feeds = feeds_of(kind, form)
    found = family.reference(seeded(kind)).file_results(metadata, outputs, feeds, TWO, True)
    if found is None:
        found = detect.results_of(family.name, metadata, outputs, feeds)
    match = task_module(family.task).match_detections
    return [match('image', one, other) for one, other in zip(wanted_of_two(kind), found, strict=True)]


@pytest.mark.suite('mask-proposals', 'mask-regions')
@pytest.mark.parametrize('form', ['proposals', 'regions'])
@pytest.mark.parametrize('kind', WHOLE)
def test_the_tensors_and_the_results_of_both_graphs_are_those_of_mmdet(kind, form):
    family, model, feeds = family_of(kind), seeded(kind), feeds_of(kind, form)
    options = options_of(kind, form=form, batch=2)
    family.check(toy(kind), options)
    outputs = run_stages(family.stages(model, options), feeds)
    spec = family.spec(model, options)
    for tensor in spec.outputs:
        shape = outputs[tensor.name].shape
        assert all(
            isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, shape, strict=True)
        )
    rows = rows_of(kind, form, outputs)
    stages = 3 if 'cascade' in kind else 1
    names = {'region_features_0', 'cls_score_0', f'cls_score_{stages - 1}'}
    names = names if form == 'regions' else {'features_0', 'features_3', 'rpn_cls_0', 'rpn_reg_4'}
    assert names <= {row.tensor for row in rows} and all(row.passed for row in rows), rows
    assert all(row.passed and row.reference >= 15 for row in results_of(kind, form, outputs))


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
    [('mask', 'torchscript')]
    + [
        pytest.param(kind, exporter, marks=pytest.mark.matrix)
        for kind in WHOLE
        for exporter in ('torchscript', 'dynamo')
        if (kind, exporter) != ('mask', 'torchscript')
    ],
)
def test_two_files_one_after_the_other_give_the_results_at_sizes_and_batches_that_they_never_saw(
    kind, exporter
):
    family = family_of(kind)
    first, second = (session_of(kind, form, exporter) for form in ('proposals', 'regions'))
    for prepared in unseen_batches(kind):
        feeds = family.feeds(prepared, True)
        between = first(feeds)
        assert all(row.passed for row in rows_of(kind, 'proposals', between, prepared))
        outputs = second(feeds | between)
        found = detect.results_of(family.name, metadata_of(kind), outputs, feeds)
        check_results(family, seeded(kind), prepared, found, ties=TIES.get(kind, 0))
        given = second(feeds_of(kind, 'regions', prepared))
        assert all(row.passed for row in rows_of(kind, 'regions', given, prepared))


@pytest.mark.parametrize('kind', ['rpn', 'htc', 'guided'])
def test_a_detector_that_is_one_graph_is_refused(kind):
    with pytest.raises(UsageError, match='--postprocess regions'):
        family_of(kind).check(toy(kind), options_of('faster', form='regions'))
