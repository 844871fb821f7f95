"""`--max-proposals` and `--max-candidates`: constant shapes, for engines that have no others.

Where more boxes than K could enter a suppression, the results are exact when the list is full, refused else.
"""

import copy
import types

import numpy as np
import onnxruntime
import pytest
import torch

from marking import in_suite
from mmdeploy_ext.contract.comparison import count_rows
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting import export
from mmdeploy_ext.families.two_stage import settings
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.tasks import task_module
from toy_two_stage import SIZE, family_of, images, options_of, seeded, toy

CAPS = dict(max_proposals=900, max_candidates=600)
"""All boxes that the toy's levels give enter, and all pairs of its 100 proposals and 6 classes."""


def exported(kind, model=None, exporter='torchscript', batch=2, **caps):
    """Return a fixed file, and what runs it."""
    family, model = family_of(kind), model or seeded(kind)
    opset = 18 if exporter == 'dynamo' else 17
    options = options_of(kind, batch=batch, exporter=exporter, opset=opset, **caps)
    family.check(toy(kind), options)
    example = {name: torch.from_numpy(array) for name, array in family.feeds(images(batch), True).items()}
    spec = family.spec(model, options)
    graph = export.export_stages(family.stages(model, options), example, spec, options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    names = [one.name for one in session.get_outputs()]
    assert names == spec.output_names

    def run(prepared):
        feeds = family.feeds(prepared, True)
        known = {name: feeds[name] for name in spec.input_names}
        return dict(zip(names, session.run(names, known), strict=True))

    return graph, spec, run


def found_by(kind, model, outputs, prepared, **caps):
    """Return what the runtime makes of outputs; raises where some may be missing."""
    metadata = types.SimpleNamespace(form='full', options=caps, postprocess=settings.facts_of(model))
    family = family_of(kind)
    return results_of(family.name, metadata, outputs, family.feeds(prepared, True))


def assert_same(kind, model, found, prepared, least=1):
    family = family_of(kind)
    for one, other in zip(family.reference(model).results(prepared, True), found, strict=True):
        row = task_module(family.task).match_detections('image', one, other)
        assert row.passed and row.reference >= least, row


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    [('mask', 'torchscript')]
    + [
        pytest.param(kind, exporter, marks=pytest.mark.matrix)
        for kind in ('faster', 'cascade', 'generic', 'double', 'sabl', 'cascade_mask')
        for exporter in ('torchscript', 'dynamo')
    ],
)
def test_a_file_with_constant_shapes_gives_the_results_of_simple_test_for_each_image(kind, exporter):
    graph, spec, run = exported(kind, exporter=exporter, **CAPS)
    assert not find_refusals(graph, rtx=True)
    operators = {node.op_type for node in graph.graph.node}
    assert not {'NonMaxSuppression', 'NonZero', 'ScatterND'} & operators and 'RoiAlign' in operators
    prepared = images(2, seed=9)
    outputs = run(prepared)
    assert {tensor.name: tensor.axes for tensor in spec.outputs} == {
        name: array.shape for name, array in outputs.items()
    }
    found = found_by(kind, seeded(kind), outputs, prepared, **CAPS)
    assert_same(kind, seeded(kind), found, prepared, 15)
    family = family_of(kind)
    bounds = family.reference(seeded(kind)).candidate_bounds(family.feeds(prepared, True), 1e-4, **CAPS)
    assert bounds.keys() == {'candidates', 'proposal_candidates'} and not count_rows(outputs, bounds)
    assert not (bounds['candidates'][1] > 600).any()


NO_PROPOSALS = 'faster', 0.05, 1000


@pytest.mark.parametrize(
    ('kind', 'score_thr', 'smallest'), in_suite([('mask', 0.3, 0), NO_PROPOSALS], NO_PROPOSALS)
)
def test_rows_that_an_image_does_not_have_are_zero_with_label_minus_one(kind, score_thr, smallest):
    prepared, model = images(2, seed=9), copy.deepcopy(seeded(kind))
    model.roi_head.test_cfg.score_thr, model.rpn_head.test_cfg.min_bbox_size = score_thr, smallest
    _, _, run = exported(kind, model, **CAPS)
    outputs = run(prepared)
    padding, rows = outputs['labels'] == -1, {'dets', 'masks'} & outputs.keys()
    assert padding.any() and not any(outputs[name][padding].any() for name in rows)
    assert outputs['proposal_candidates'].any() != bool(smallest)
    found = found_by(kind, model, outputs, prepared, **CAPS)
    assert_same(kind, model, found, prepared, 0)
    assert all(map(len, found)) != bool(smallest)


def test_a_wrong_count_of_candidates_is_refused():
    family, prepared = family_of('faster'), images(2, seed=9)
    bounds = family.reference(seeded()).candidate_bounds(family.feeds(prepared, True), 1e-4, **CAPS)
    right = {name: (low + high) // 2 for name, (low, high) in bounds.items()}
    assert not count_rows(right, bounds)
    for name in right:
        (row,) = count_rows({**right, name: right[name] - np.array([0, 3])}, bounds)
        assert row.tensor == name and not row.passed
    assert SIZE == (192, 256)
