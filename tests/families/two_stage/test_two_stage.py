"""Two-stage detectors against mmdet's own `simple_test`: eager, exported, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from mmdet.models.builder import build_roi_extractor

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import EXPORTERS, changed, check, exported, run_stages, seeded_toy
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.export import check_operators
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common.regions import Pool
from mmdeploy_ext.families.two_stage.family import BOXES
from toy_two_stage import PARTS, SIZE, family_of, image_branch, images, options_of, seeded, toy

KINDS = [kind for kind in PARTS if kind != 'panoptic']
EAGER = ('scnet', 'htc', 'guided', 'judged', 'grid', 'points', 'legacy', 'moved', 'sabl', 'fast')
"""Kinds of the suite; graphs of the others' parts are run in test_two_stage_forms.py, all in the matrix."""
SINGLE = 'guided'
"""Takes one image of one size, of 129 pixels at least."""


def options_and_images(kind, **chosen):
    size = (192, 256) if kind == SINGLE else SIZE
    return options_of(kind, size, **chosen), images(1 if kind == SINGLE else 2, size)


@pytest.mark.parametrize('kind', EAGER)
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    family, model, (options, prepared) = family_of(kind), seeded(kind), options_and_images(kind)
    family.check(toy(kind), options)
    outputs = run_stages(family.stages(model, options), family.feeds(prepared, True))
    check(family, model, outputs, prepared, 15)


@pytest.mark.matrix
@pytest.mark.parametrize(('kind', 'exporter'), list(itertools.product(KINDS, EXPORTERS)))
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter):
    family, model = family_of(kind), seeded(kind)
    options, traced = options_and_images(kind, dynamic=kind != SINGLE, exporter=exporter)
    _, run = exported(family, model, options, traced[:1])
    width = 192 if kind == 'carafe' else 160  # its maps fit at multiples of 64
    for prepared in (
        [images(1, (192, 256), 9)] if kind == SINGLE else (images(3, seed=9), images(2, (256, width), 3))
    ):
        outputs = run(family.feeds(prepared, True))
        check(family, model, outputs, prepared, ties=2 if kind == 'sabl' else 0)


def test_a_detector_with_other_names_of_its_parts_gives_the_results_of_faster_rcnn():
    """ImVoteNet's first stage."""
    cfg, prepared = image_branch(), images()
    family = find_family(cfg)
    model = seeded_toy(cfg, family)
    options = family.choose(height=SIZE[0], width=SIZE[1], opset=17)
    family.check(cfg, options)
    outputs = run_stages(family.stages(model, options), family.feeds(prepared, True))
    faster = BOXES.build(toy())
    faster.load_state_dict({key.removeprefix('img_'): value for key, value in model.state_dict().items()})
    check(BOXES, faster, outputs, prepared, 15)
    (of_branch,), (of_faster,) = (
        one.reference(net).results(prepared[:1], True) for one, net in ((family, model), (BOXES, faster))
    )
    assert (of_branch.bboxes_xyxy == of_faster.bboxes_xyxy).all()
    assert (of_branch.scores == of_faster.scores).all()


def test_levels_are_those_of_mmdet_also_at_their_borders():
    extractor = seeded().roi_head.bbox_roi_extractor
    finest, draw = extractor.finest_scale, np.random.default_rng(0)
    sides = np.concatenate([finest * 2.0 ** np.arange(-2, 6), draw.uniform(1, 600, 5000)]).astype(np.float32)
    sides = np.concatenate([np.nextafter(sides, 0), sides, np.nextafter(sides, 1e9)])
    boxes = torch.from_numpy(np.stack([sides * 0, sides * 0, sides, sides], 1))
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    wanted = extractor.map_roi_levels(rois, 4)
    assert torch.equal(Pool(extractor).levels(boxes), wanted) and set(wanted.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize('strides', [[8], [8, 16]])
@pytest.mark.parametrize('kind', ['SingleRoIExtractor', 'GenericRoIExtractor'])
def test_regions_are_enlarged_where_mmdet_enlarges_them(kind, strides):
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=2)
    extractor = build_roi_extractor(dict(type=kind, roi_layer=layer, out_channels=2, featmap_strides=strides))
    maps = [torch.rand(1, 2, 128 // stride, 128 // stride) for stride in strides]
    boxes, factor = torch.tensor([[10.0, 12.0, 110.0, 112.0]]), 1.3  # enlarged, of the next level
    wanted = extractor(maps, torch.nn.functional.pad(boxes, (1, 0)), roi_scale_factor=factor)
    pooled = Pool(extractor)(maps, boxes, torch.zeros(1, dtype=torch.int64), factor)
    assert torch.allclose(pooled, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ('path', 'value', 'said', 'kind'),
    [
        ('rpn_head', None, 'model.rpn_head is missing', 'faster'),
        ('test_cfg.rpn.nms.type', 'soft_nms', "nms.type='soft_nms'", 'faster'),
        ('roi_head.bbox_roi_extractor.roi_layer.pool_mode', 'max', "pool_mode='max'", 'faster'),
        ('rpn_head.bbox_coder', dict(type='YOLOBBoxCoder'), 'bbox_coder is YOLOBBoxCoder', 'faster'),
        ('roi_head.bbox_head.with_reg', False, 'with_reg=False', 'faster'),
        ('roi_head.mask_info_flow', False, 'mask_info_flow=False', 'htc'),
        ('test_cfg.rcnn', None, 'model.test_cfg.rcnn', 'faster'),
        ('panoptic_fusion_head.num_stuff_classes', 9, '6 things and 9 stuff', 'panoptic'),
        ('test_cfg.panoptic.mask_overlap', None, 'mask_overlap', 'panoptic'),
        ('test_cfg.panoptic', None, 'test_cfg.panoptic', 'panoptic'),
    ],
)
def test_what_is_not_exported_is_refused_by_its_key(path, value, said, kind):
    cfg = changed(toy(kind), path, value)
    with pytest.raises(ConfigError, match=said):
        find_family(cfg).check(cfg, options_of(kind))


def test_sizes_opsets_and_forms_that_do_not_fit_are_usage_errors():
    with pytest.raises(UsageError, match='at least the largest stride'):
        family_of('faster').check(toy(), options_of('faster', (32, 256)))
    with pytest.raises(UsageError, match=r'RoIAlign.*opset 16'):
        check_operators(seeded(), 15)
    for kind in ('rpn', 'htc', 'guided'):
        with pytest.raises(UsageError, match='--postprocess regions'):
            family_of(kind).check(toy(kind), options_of('faster', form='regions'))
