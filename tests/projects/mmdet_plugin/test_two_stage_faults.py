"""Planted faults of two-stage graphs: each gives results that the proof's matching refuses."""

import types

import pytest
from two_stage_faulty import FAULTS, OF_NETWORKS, RARE

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.families.two_stage import boxes as boxes_module
from mmdeploy_ext.proving.tasks import task_module
from toy_two_stage import family_of, images, options_of, run_stages, seeded
from two_stage_parts import SINGLE

FULL = types.SimpleNamespace(form='full', options={}, postprocess=dict(mask_thr=0.5))


def judged(kind, plant=None, postprocess=FULL):
    """Return whether every image of a batch passes."""
    family, model, prepared = family_of(kind), seeded(kind), pictures_of(kind)
    stages = family.stages(model, options_of(kind))
    if plant is not None:
        plant(stages[0].module.model if plant in OF_NETWORKS else stages[-1].module)
    feeds = family.feeds(prepared, True)
    found = family.detections(postprocess, run_stages(stages, feeds), feeds)
    wanted = reference(kind)
    match = task_module(family.task).match_detections
    return all(match('image', one, other).passed for one, other in zip(wanted, found, strict=True))


REFERENCES = {}


def reference(kind):
    if kind not in REFERENCES:
        prepared = pictures_of(kind)
        REFERENCES[kind] = family_of(kind).reference_detections(seeded(kind), prepared, True)
    return REFERENCES[kind]


def pictures_of(kind):
    return images(1 if kind in SINGLE else 2)


@pytest.mark.parametrize('kind', ['faster', 'cascade', 'mask'])
def test_a_graph_without_a_fault_passes(kind):
    assert judged(kind)


@pytest.mark.suite(
    'scores_that_do_not_fall', 'sampling_ratio', 'shifted_levels', 'proposals_of_the_first_image',
    'unclipped', 'masks_of_the_next_class',
)  # fmt: skip
@pytest.mark.parametrize(
    'plant',
    [
        pytest.param(plant, marks=[pytest.mark.matrix] if plant in RARE else [], id=plant.__name__)
        for plant in FAULTS | OF_NETWORKS
    ],
)
def test_a_planted_fault_is_refused(plant):
    assert not judged((FAULTS | OF_NETWORKS)[plant], plant)


def test_the_background_column_for_the_first_class_is_refused(monkeypatch):
    monkeypatch.setattr(boxes_module, 'activated', lambda head, logits: logits.softmax(-1)[..., 1:])
    assert not judged('faster')


def test_another_threshold_of_masks_is_refused():
    assert not judged(
        'mask', postprocess=types.SimpleNamespace(form='full', options={}, postprocess=dict(mask_thr=0.45))
    )
