"""Two-stage detectors against mmdet's own `simple_test`: eager, exported, and what is refused."""

import copy
import types

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.models.builder import build_roi_extractor

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from marking import in_suite
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.export import check_operators, default_opset
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.parts.regions import Pool
from mmdeploy_ext.families.two_stage.supported_parts import result_cfg
from mmdeploy_ext.runtime.detect import results_of
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
from two_stage_parts import SINGLE

EXPORTED = ('faster',)
"""Kinds whose graphs the suite exports; the matrix has all. Cascades with masks are in the two graphs of
`test_two_stage_split.py`."""
POOLS = dict(faster=4, cascade=12, mask=8, cascade_mask=24, fast=4, generic=4, htc=20, scnet=24)
"""Kind -> RoIAlign nodes: of each level and stage of boxes, of masks once, of semantic maps with each."""
LIKE = (
    *('faster', 'cascade', 'cascade_mask', 'mask', 'generic'),
    *('htc_alone', 'modulated', 'guided_alone', 'staged_alone'),
)
"""Kinds whose parts other kinds have, or other files of tests look at: `test_two_stage_{faults,split}.py`."""
ALONE = ('rpn', 'guided_alone', 'staged_alone')
"""Kinds whose results are proposals."""


def full(family, model):
    """Return what the runtime reads of a file."""
    return types.SimpleNamespace(form='full', options={}, postprocess=family.facts(model))


def same(kind, model, outputs, prepared, least=1, ties=0):
    """Assert that results are those of `simple_test`, and that every image has some."""
    family = family_of(kind)
    found = results_of(family.name, full(family, model), outputs, family.feeds(prepared, True))
    check_results(family, model, prepared, found, least, ties)


@pytest.mark.suite(
    'scnet', 'htc', 'guided', 'judged', 'grid', 'points', 'legacy', 'moved', 'sabl', 'fast',
)  # fmt: skip
@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[pytest.mark.matrix] if kind in LIKE else []) for kind in KINDS]
)
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    model, prepared = seeded(kind), images(1 if kind in SINGLE else 2)
    family_of(kind).check(toy(kind), options_of(kind))
    stages = family_of(kind).stages(model, options_of(kind))
    same(kind, model, run_stages(stages, family_of(kind).feeds(prepared, True)), prepared, 15)


def exported(kind, exporter='torchscript', model=None, **chosen):
    """Return a session of a dynamic file that was traced with one image."""
    family, model = family_of(kind), model or seeded(kind)
    options = options_of(kind, dynamic=kind not in SINGLE, exporter=exporter, **chosen)
    options = options.replace(opset=default_opset(model, exporter))
    example = {name: torch.from_numpy(array) for name, array in family.feeds(images(1), True).items()}
    spec = family.spec(model, options)
    graph = export.export_stages(family.stages(model, options), example, spec, options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    names = [one.name for one in session.get_outputs()]

    def run(prepared):
        feeds = family.feeds(prepared, True)
        taken = (*session.get_inputs(), *session.get_overridable_initializers())
        known = {one.name: feeds[one.name] for one in taken}
        return dict(zip(names, session.run(names, known), strict=True))

    return graph, run


@pytest.mark.parametrize(
    ('kind', 'exporter'),
    [(kind, 'torchscript') for kind in EXPORTED]
    + [pytest.param(kind, 'torchscript', marks=pytest.mark.matrix) for kind in KINDS if kind not in EXPORTED]
    + [pytest.param(kind, 'dynamo', marks=pytest.mark.matrix) for kind in KINDS],
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    graph, run = exported(kind, exporter)
    for prepared in (images(1, seed=9), images(1, seed=11)) if kind in SINGLE else unseen_batches(kind):
        same(kind, seeded(kind), run(prepared), prepared, ties=TIES.get(kind, 0))
    pools = [node for node in graph.graph.node if node.op_type == 'RoiAlign']
    settings = [{one.name: one for one in node.attribute} for node in pools]
    assert exporter == 'dynamo' or len(pools) == POOLS.get(kind, len(pools))
    mode, ratio = (b'output_half_pixel', 2) if kind == 'legacy' else (b'half_pixel', 0)
    assert all(one['coordinate_transformation_mode'].s == mode for one in settings)
    assert all(one['sampling_ratio'].i == ratio for one in settings)
    assert bool(settings) == (kind not in ALONE)


def without_results(kind, proposals):
    """Return a model that finds nothing: no proposals, or none of them over the threshold."""
    model = copy.deepcopy(seeded(kind))
    if proposals:
        result_cfg(model).score_thr = 2.0
    else:
        model.rpn_head.test_cfg.min_bbox_size = 1000
    return model


@pytest.mark.matrix  # in the suite: test_two_stage_constant.py
@pytest.mark.parametrize(
    ('kind', 'proposals'), in_suite([('faster', False), ('mask', True)], ('faster', False))
)
def test_without_proposals_or_detections_results_are_empty(kind, proposals):
    model, family = without_results(kind, proposals), family_of(kind)
    _, run = exported(kind, model=model)
    prepared = images(1 if kind in SINGLE else 2)
    outputs, nothing = run(prepared), [0] * len(prepared)
    assert [len(one) for one in family.reference(model).results(prepared, True)] == nothing
    assert outputs['labels'].max(initial=-1) == -1
    found = results_of(family.name, full(family, model), outputs, family.feeds(prepared, True))
    assert [len(one) for one in found] == nothing


def test_levels_are_those_of_mmdet_also_at_their_borders():
    extractor = seeded().roi_head.bbox_roi_extractor
    finest, draw = extractor.finest_scale, np.random.default_rng(0)
    sides = np.concatenate([finest * 2.0 ** np.arange(-2, 6), draw.uniform(1, 600, 5000)]).astype(np.float32)
    sides = np.concatenate([np.nextafter(sides, 0), sides, np.nextafter(sides, 1e9)])
    boxes = torch.from_numpy(np.stack([sides * 0, sides * 0, sides, sides], 1))
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    wanted = extractor.map_roi_levels(rois, 4)
    assert torch.equal(Pool(extractor).levels(boxes), wanted) and set(wanted.tolist()) == {0, 1, 2, 3}


def ending_before_they_begin(head, inputs, outputs):
    """A hook on SABL's head of boxes: left sides of some regions move right, and right ones left."""
    scores, (classes, offsets) = outputs
    sides = offsets.unflatten(1, (4, -1))  # left, right, top, bottom
    shifts = torch.tensor([-8.0, 8.0, 0.0, 0.0])[:, None]
    return scores, (classes, torch.where(sides[:, :1, :1] > 0, sides + shifts, sides).flatten(1))


@pytest.mark.matrix
def test_boxes_of_buckets_that_end_before_they_begin_suppress_nothing():
    model, prepared, family = seeded('sabl'), images(1), family_of('sabl')
    with model.roi_head.bbox_head.register_forward_hook(ending_before_they_begin):
        (results,) = family.reference(model).results(prepared, True)
        assert (results.bboxes_xyxy[:, 2] < results.bboxes_xyxy[:, 0]).sum() > 10
        same('sabl', model, exported('sabl', model=model)[1](prepared), prepared, 15)


@pytest.mark.parametrize('strides', [[8], [8, 16]])
@pytest.mark.parametrize('kind', ['SingleRoIExtractor', 'GenericRoIExtractor'])
def test_regions_are_enlarged_where_mmdet_enlarges_them(kind, strides):
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=2)
    extractor = build_roi_extractor(dict(type=kind, roi_layer=layer, out_channels=2, featmap_strides=strides))
    maps = [torch.rand(1, 2, 64 // stride, 64 // stride) for stride in strides]
    boxes, factor = torch.tensor([[10.0, 12.0, 40.0, 44.0]]), 1.3
    wanted = extractor(maps, torch.nn.functional.pad(boxes, (1, 0)), roi_scale_factor=factor)
    pooled = Pool(extractor)(maps, boxes, torch.zeros(1, dtype=torch.int64), factor)
    assert torch.allclose(pooled, wanted, atol=1e-6)


def change(path, value, kind='faster'):
    """Return what sets a key of a config, and the kind of toy."""

    def apply(model):
        *keys, last = path.split('.')
        for key in keys:
            model = model[key]
        model[last] = value

    return kind, apply


REFUSED = {
    'model.rpn_head is missing': change('rpn_head', None),
    "nms.type='soft_nms'": change('test_cfg.rpn.nms.type', 'soft_nms'),
    'roi_layer.type=DeformRoIPool': change(
        'roi_head.bbox_roi_extractor.roi_layer', dict(type='DeformRoIPool', output_size=7)
    ),
    "pool_mode='max'": change('roi_head.bbox_roi_extractor.roi_layer.pool_mode', 'max'),
    'bbox_coder is YOLOBBoxCoder': change('rpn_head.bbox_coder', dict(type='YOLOBBoxCoder')),
    'with_reg=False': change('roi_head.bbox_head.with_reg', False),
    'mask_info_flow=False': change('roi_head.mask_info_flow', False, 'htc'),
    'model.test_cfg.rcnn': change('test_cfg.rcnn', None),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(said):
    kind, apply = REFUSED[said]
    cfg = toy(kind)
    apply(cfg.model)
    with pytest.raises(ConfigError, match=said) as refused:
        find_family(cfg).check(cfg, options_of('faster'))
    assert cfg.filename in str(refused.value) and '\n' not in str(refused.value)


def test_sizes_and_opsets_that_do_not_fit_are_usage_errors():
    with pytest.raises(UsageError, match='at least the largest stride'):
        family_of('faster').check(toy(), options_of('faster', (32, 256)))
    with pytest.raises(UsageError, match=r'128 256: .* at least 129 pixels'):  # deformable convolutions
        family_of('staged').spec(seeded('staged'), options_of('staged', (128, 256)))
    with pytest.raises(UsageError, match=r'RoIAlign.*ONNX.*16'):
        check_operators(seeded(), 15)
