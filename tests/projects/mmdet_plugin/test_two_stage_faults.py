"""Planted faults of two-stage graphs: each gives results that the proof's matching refuses."""

import dataclasses
import types

import pytest
import torch

from mmdeploy_ext.proof.tasks import task_module
from projects.mmdet_plugin.two_stage import boxes as boxes_module
from toy_two_stage import family_of, images, options_of, run_stages, seeded

FULL = types.SimpleNamespace(form='full', options={}, postprocess=dict(mask_thr=0.5))


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


def proposals_of_the_first_image(form):
    choose = form.proposals.forward
    form.proposals.forward = lambda *given: tuple(one[:1].expand_as(one) for one in choose(*given))


def features_of_the_first_image(form):
    pool = form.boxes.stages[0].pool
    forward = pool.forward
    pool.forward = lambda maps, boxes, images, *more: forward(maps, boxes, images * 0, *more)


def deviation_of_proposals(form):
    form.proposals.facts['coder'] = dict(form.proposals.facts['coder'], stds=[1.0, 1.0, 1.1, 1.0])


def deviation_of_the_second_stage(form):
    form.boxes.stages[1].head.bbox_coder.stds = [0.1, 0.1, 0.2, 0.2]


def scores_of_the_last_stage(form):
    for stage in form.boxes.stages[:-1]:
        forward = stage.forward

        def alone(*given, forward=forward):
            scores, *others = forward(*given)
            return scores * 0, *others

        stage.forward = alone


def masks_of_the_next_class(form):
    forward = form.masks.forward
    form.masks.forward = lambda maps, dets, labels, scale: forward(
        maps, dets, torch.where(labels >= 0, (labels + 1) % 6, labels), scale
    )


def suppression_over_all_classes(form):
    form.boxes.config = dataclasses.replace(form.boxes.config, class_agnostic=True)


def smaller_limit_of_proposals(form):
    form.proposals.config = dataclasses.replace(form.proposals.config, max_per_img=60)


def unclipped(form):
    form.proposals.facts['clip'] = False


def semantic_map_left_out(form):
    added = form.boxes.stages[0].added
    added.forward = lambda pooled, *_: pooled


def semantic_maps_of_masks_left_out(form):
    form.masks.logits.added.forward = lambda pooled, *_: pooled


def context_of_the_first_image(form):
    for stage in form.boxes.stages:
        forward = stage.added.forward
        stage.added.forward = lambda pooled, maps, boxes, images, forward=forward: forward(
            pooled, [*maps[:-1], maps[-1][:1].expand_as(maps[-1])], boxes, images
        )


def heads_that_see_nothing_of_those_before(form):
    for head in form.masks.logits.heads:
        forward = head.forward
        head.forward = lambda features, before, forward=forward: forward(features)


def nothing_relayed(form):
    form.masks.logits.relay.forward = lambda shared: shared.new_zeros(())


def iou_left_out(form):
    form.masks.judge.forward = lambda features, logits: features.new_ones((len(features), 6))


def points_a_cell_off(form):
    form.masks.points.scales = [scale * 1.1 for scale in form.masks.points.scales]


def one_step_without_points(form):
    form.masks.points.points = 4


def grid_without_its_corners(form):
    form.grid.corners = form.grid.corners * 0


def borders_of_today(form):
    form.proposals.facts['head'] = dict(form.proposals.facts['head'], clip_inset=0.0)


def scores_that_do_not_fall(form):
    form.boxes.config = dataclasses.replace(form.boxes.config, method='naive')


def scores_that_fall_by_a_bell(form):
    form.boxes.config = dataclasses.replace(form.boxes.config, method='gaussian')


def another_least_score(form):
    form.boxes.config = dataclasses.replace(form.boxes.config, min_score=0.1)


FAULTS = {
    scores_that_do_not_fall: 'soft',
    scores_that_fall_by_a_bell: 'soft',
    another_least_score: 'soft',
    not_aligned: 'faster',
    sampling_ratio: 'faster',
    scale_of_a_level: 'faster',
    shifted_levels: 'faster',
    proposals_of_the_first_image: 'faster',
    features_of_the_first_image: 'faster',
    deviation_of_proposals: 'faster',
    suppression_over_all_classes: 'faster',
    smaller_limit_of_proposals: 'faster',
    unclipped: 'faster',
    deviation_of_the_second_stage: 'cascade',
    scores_of_the_last_stage: 'cascade',
    masks_of_the_next_class: 'mask',
    semantic_map_left_out: 'htc',
    semantic_maps_of_masks_left_out: 'htc',
    heads_that_see_nothing_of_those_before: 'htc',
    context_of_the_first_image: 'scnet',
    nothing_relayed: 'scnet',
    iou_left_out: 'judged',
    points_a_cell_off: 'points',
    one_step_without_points: 'points',
    grid_without_its_corners: 'grid',
    borders_of_today: 'legacy',
}


def judged(kind, plant=None, postprocess=FULL):
    """Return whether every image of a batch passes."""
    family, model, prepared = family_of(kind), seeded(kind), images(2)
    stages = family.stages(model, options_of(kind))
    if plant is not None:
        plant(stages[-1].module)
    feeds = family.feeds(prepared, True)
    found = family.detections(postprocess, run_stages(stages, feeds), feeds)
    wanted = reference(kind)
    match = task_module(family.task).match_detections
    return all(match('image', one, other).passed for one, other in zip(wanted, found, strict=True))


REFERENCES = {}


def reference(kind):
    if kind not in REFERENCES:
        REFERENCES[kind] = family_of(kind).reference_detections(seeded(kind), images(2), True)
    return REFERENCES[kind]


@pytest.mark.parametrize('kind', ['faster', 'cascade', 'mask'])
def test_a_graph_without_a_fault_passes(kind):
    assert judged(kind)


@pytest.mark.parametrize('plant', FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_refused(plant):
    assert not judged(FAULTS[plant], plant)


def test_the_background_column_for_the_first_class_is_refused(monkeypatch):
    monkeypatch.setattr(boxes_module, 'activated', lambda head, logits: logits.softmax(-1)[..., 1:])
    assert not judged('faster')


def test_another_threshold_of_masks_is_refused():
    assert not judged(
        'mask', postprocess=types.SimpleNamespace(form='full', options={}, postprocess=dict(mask_thr=0.45))
    )
