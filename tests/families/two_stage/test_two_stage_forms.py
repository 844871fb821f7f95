"""Mask R-CNN in other forms: two graphs, masks of the size of the original, and constant shapes."""

import copy
import itertools

import numpy as np
import onnxruntime
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, check, exported, matched, run_stages
from marking import in_suite
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting import export
from mmdeploy_ext.families.common.pasting import Paste
from mmdeploy_ext.families.common.runtime.pasted_masks import paste
from mmdeploy_ext.spec.comparison import compare_tensors, count_rows
from toy_two_stage import family_of, images, options_of, seeded, toy

EXPORTED = ('mask', 'torchscript')
TWO_GRAPHS = (
    'faster',
    'cascade',
    'mask',
    'cascade_mask',
    'double',
    'generic',
    'sabl',
    'legacy',
    'judged',
    'points',
)
CONSTANT = ('mask', 'faster', 'cascade', 'generic', 'double', 'sabl', 'cascade_mask')
TIES = dict(sabl=2)


# ---- two graphs: pictures to proposals, regions to results


def tensor_rows(kind, form, outputs, feeds):
    """Return how the tensors of a graph match mmdet's."""
    family, model = family_of(kind), seeded(kind)
    reference, spec = family.reference(model), family.spec(model, options_of(kind, form=form))
    expected = reference.tensors(feeds, form, outputs)
    assert expected.keys() == {tensor.name for tensor in spec.outputs if tensor.compare == 'values'}
    return compare_tensors(expected, {name: outputs[name] for name in expected}, spec)


@pytest.mark.parametrize(('kind', 'exporter'), in_suite(itertools.product(TWO_GRAPHS, EXPORTERS), EXPORTED))
def test_two_files_one_after_the_other_give_tensors_and_results_of_mmdet_at_other_sizes(kind, exporter):
    family, model, prepared = family_of(kind), seeded(kind), images(2, (256, 160), 3)
    feeds, (first, second) = (
        family.feeds(prepared, True),
        (
            exported(family, model, options_of(kind, form=form, dynamic=True, exporter=exporter), images(1))[
                1
            ]
            for form in ('proposals', 'regions')
        ),
    )
    proposals = first(feeds)
    assert all(row.passed for row in tensor_rows(kind, 'proposals', proposals, feeds))
    outputs = second(feeds | proposals)
    check(family, model, outputs, prepared, form='regions', ties=TIES.get(kind, 0))
    given = feeds | family.reference(model).inner_inputs(feeds, 'regions')
    rows = tensor_rows(kind, 'regions', second(given), given)
    stages = 3 if 'cascade' in kind else 1
    assert {'region_features_0', f'cls_score_{stages - 1}'} <= {row.tensor for row in rows}
    assert all(row.passed for row in rows), rows


# ---- `--paste-masks`

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


@pytest.mark.parametrize('exporter', in_suite(EXPORTERS, 'torchscript'))
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
    names = dict(input_names=names, output_names=('masks',), dynamic={**dynamic, 'ori_shape': {0: 'B'}})
    opset = 18 if exporter == 'dynamo' else 17
    model = export.export_module(Paste(0.5), example, exporter=exporter, opset=opset, **names)
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
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


@pytest.mark.parametrize('kind', in_suite(['mask', 'cascade_mask'], 'mask'))
def test_pasted_masks_of_every_image_of_a_batch_are_mmdets(kind):
    """test_query.py exports the same module behind a trace of QueryInst."""
    family, model, prepared = family_of(kind), seeded(kind), images(2)
    options = options_of(kind, batch=2, paste_masks=True)
    family.check(toy(kind), options)
    outputs = run_stages(family.stages(model, options), family.feeds(prepared, True))
    check(family, model, outputs, prepared, 15)
    assert outputs['masks'].dtype == bool and outputs['masks'].shape[2:] != (28, 28)


# ---- `--max-proposals` and `--max-candidates`: constant shapes

CAPS = dict(max_proposals=900, max_candidates=600)
"""All boxes that the toy's levels give enter, and all pairs of its 100 proposals and 6 classes."""


def with_thresholds(kind, score_thr, smallest):
    model = copy.deepcopy(seeded(kind))
    model.roi_head.test_cfg.score_thr, model.rpn_head.test_cfg.min_bbox_size = score_thr, smallest
    return model


@pytest.mark.matrix  # in the suite: the cap of masks in tests/exporting/postprocess
@pytest.mark.parametrize(('kind', 'exporter'), list(itertools.product(CONSTANT, EXPORTERS)))
def test_a_file_with_constant_shapes_gives_the_results_of_simple_test_for_each_image(kind, exporter):
    family, model, prepared = family_of(kind), with_thresholds(kind, 0.3, 0), images(2, seed=9)
    options = options_of(kind, batch=2, exporter=exporter, **CAPS)
    family.check(toy(kind), options)
    graph, run = exported(family, model, options, images(2))
    assert not find_refusals(graph, rtx=True)
    feeds = family.feeds(prepared, True)
    outputs = run(feeds)
    spec = family.spec(model, options)
    assert {tensor.name: tensor.axes for tensor in spec.outputs} == {
        name: array.shape for name, array in outputs.items()
    }
    check(family, model, outputs, prepared, 1, **CAPS)
    padding = outputs['labels'] == -1
    assert padding.any() and not any(
        outputs[name][padding].any() for name in {'dets', 'masks'} & outputs.keys()
    )
    bounds = family.reference(model).candidate_bounds(feeds, 1e-4, **CAPS)
    assert bounds.keys() == {'candidates', 'proposal_candidates'} and not count_rows(outputs, bounds)
    for name in bounds:
        (row,) = count_rows({**outputs, name: outputs[name] - np.array([0, 3])}, bounds)
        assert row.tensor == name and not row.passed


def test_without_proposals_results_are_empty():
    family, model, prepared = family_of('faster'), with_thresholds('faster', 0.05, 1000), images(2)
    options = options_of('faster', batch=2, **CAPS)
    outputs = run_stages(family.stages(model, options), family.feeds(prepared, True))
    assert not outputs['proposal_candidates'].any() and (outputs['labels'] == -1).all()
    assert [row.reference for row in matched(family, model, outputs, prepared)] == [0, 0]
    check(family, model, outputs, prepared, 0, **CAPS)


@pytest.mark.parametrize(('inside', 'bounds'), [(2e-3, (1, 2)), (-2e-3, (1, 2)), (0.5, (2, 2)), (-9, (1, 1))])
def test_a_proposal_that_clipping_leaves_without_area_counts_by_rounding(inside, bounds, monkeypatch):
    """Its left side is `inside` pixels left of the image's right border; the other one is in the image."""
    model = with_thresholds('faster', 0.3, 0)
    head = model.rpn_head
    anchors = head.prior_generator.grid_priors([(2, 2)] * len(head.prior_generator.strides), device='cpu')
    cells = head.prior_generator.num_base_priors[0]
    logits = [torch.full((1, cells, 2, 2), -9.0) for _ in anchors]
    deltas = [torch.zeros(1, 4 * cells, 2, 2) for _ in anchors]
    x1, y1, x2, _ = anchors[0][0].tolist()
    size = (64, 64)
    for level in deltas:
        level[:, 0::4] = -1e3  # left of the image
    deltas[0][0, 0, 0, 0] = (size[1] - inside - x1) / (x2 - x1) / head.bbox_coder.stds[0]
    deltas[0][0, 1, 0, 0] = (16 - y1) / (x2 - x1) / head.bbox_coder.stds[1]
    deltas[0][0, 0:2, 1, 1] = deltas[0].new_tensor([8.0, 8.0]) / (x2 - x1)
    monkeypatch.setattr(head, 'forward', lambda maps: (logits, deltas))
    feeds = dict(input=np.zeros((1, 3, *size), np.float32))
    found = family_of('faster').reference(model).candidate_bounds(feeds, 1e-4, max_proposals=900)
    assert tuple(int(count.item()) for count in found['proposal_candidates']) == bounds


@pytest.mark.parametrize(('score', 'bounds'), [(0.0, (3, 4)), (-5e-5, (3, 4)), (-1.0, (4, 4)), (1.0, (3, 3))])
def test_which_of_equal_scores_enter_at_the_cut_of_a_level_is_not_decided(score, bounds, monkeypatch):
    """Four enter: three in the image, then one of two, of which one is in the image."""
    model = with_thresholds('faster', 0.3, 0)
    head, size = model.rpn_head, (64, 64)
    head.test_cfg.nms_pre = 4
    count, cells = len(head.prior_generator.strides), head.prior_generator.num_base_priors[0]
    logits = [torch.full((1, cells, *((3, 3) if level == 0 else (1, 1))), -9.0) for level in range(count)]
    deltas = [torch.zeros(1, 4 * level.shape[1], *level.shape[2:]) for level in logits]
    for level in deltas[1:]:
        level[:, 0::4] = -1e3  # left of the image
    logits[0][0, 0].view(-1)[[4, 5, 7, 8]] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    logits[0][0, 1, 2, 2] = score
    deltas[0][0, 4, 2, 2] = -1e3
    monkeypatch.setattr(head, 'forward', lambda maps: (logits, deltas))
    feeds = dict(input=np.zeros((1, 3, *size), np.float32))
    found = family_of('faster').reference(model).candidate_bounds(feeds, 1e-4, max_proposals=900)
    assert tuple(int(count.item()) for count in found['proposal_candidates']) == bounds
