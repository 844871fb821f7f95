"""Faults of the modules that a two-stage graph is made of: each is given what it is planted in."""

import dataclasses

import torch


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


def features_of_the_second_stage(form):
    for layer in layers(form, 1):
        layer.aligned = False


def swapped_classes(form):
    forward = form.boxes.stages[0].forward

    def swapped(*given):
        scores, *others = forward(*given)
        return scores[:, [1, 0, *range(2, scores.shape[1])]], *others

    form.boxes.stages[0].forward = swapped


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


def points_of_another_scale(form):
    form.masks.points.scales = [scale * 1.1 for scale in form.masks.points.scales]


def points_a_cell_off(form):
    """What is at a point is taken one cell of the coarse mask further, to the right and down."""
    points = form.masks.points
    forward = points.forward

    def shifted(maps, boxes, coarse, *others):
        cell = (boxes[..., 2:] - boxes[..., :2]) / coarse.shape[-1]
        return forward(maps, boxes + cell.repeat(1, 1, 2), coarse, *others)

    points.forward = shifted


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


def fewer_places(form):
    form.proposals.facts['head'] = dict(form.proposals.facts['head'], visible_thr=0.02)


def sizes_of_guided_anchors(form):
    coder = form.proposals.facts['coder']
    anchors = dict(coder['anchor_coder'], stds=[0.07, 0.07, 0.16, 0.14])
    form.proposals.facts['coder'] = dict(coder, anchor_coder=anchors)


def fewer_guided_anchors_of_a_level(form):
    form.proposals.max_per_level = 20


def features_that_follow_no_anchor(model):
    torch.nn.init.zeros_(model.rpn_head.feature_adaption.conv_offset.weight)


def deviation_of_the_first_anchors(model):
    model.rpn_head.stages[0].bbox_coder.stds = [0.1, 0.1, 0.55, 0.5]


def cells_of_another_stride(model):
    stage = model.rpn_head.stages[1]
    stage.anchor_strides = [stride * 1.5 for stride in stage.anchor_strides]


def deviation_of_refined_anchors(form):
    form.proposals.facts['coder'] = dict(form.proposals.facts['coder'], stds=[0.05, 0.05, 0.11, 0.1])


def turned(pack):
    """Turn the kernels by which maps are enlarged by half a turn."""
    normed = pack.kernel_normalizer
    pack.kernel_normalizer = lambda kernels: normed(kernels).flip(1)


def turned_kernels_of_masks(form):
    turned(form.masks.logits.branches[0].head.upsample)


def turned_kernels_of_the_neck(model):
    for module in model.neck.modules():
        if hasattr(module, 'kernel_normalizer'):
            turned(module)


def cells_that_do_not_move(form):
    for layer in layers(form):
        layer.gamma = 0.0


def cells_that_move_twice_as_far(form):
    for layer in layers(form):
        layer.gamma = 0.2


def cells_of_equal_weight(form):
    for layer in layers(form):
        layer.mask_fc.forward = lambda flat: torch.ones_like(flat[:, :49])


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
    points_of_another_scale: 'points',
    points_a_cell_off: 'points',
    one_step_without_points: 'points',
    grid_without_its_corners: 'grid',
    borders_of_today: 'legacy',
    fewer_places: 'guided',
    sizes_of_guided_anchors: 'guided',
    fewer_guided_anchors_of_a_level: 'guided',
    deviation_of_refined_anchors: 'staged',
    turned_kernels_of_masks: 'carafe',
    cells_that_do_not_move: 'moved',
    cells_that_move_twice_as_far: 'moved',
    cells_of_equal_weight: 'modulated',
}
"""What plants a fault in what follows the network -> kind of toy."""
OF_NETWORKS = {
    features_that_follow_no_anchor: 'guided',
    deviation_of_the_first_anchors: 'staged',
    cells_of_another_stride: 'staged',
    turned_kernels_of_the_neck: 'carafe',
}
"""The same in the network, whose model it is given."""
RARE = {
    plant
    for plant, kind in (FAULTS | OF_NETWORKS).items()
    if kind not in ('soft', 'faster', 'cascade', 'mask')
}
"""Of kinds whose reference takes seconds: their faults are run in the matrix."""
