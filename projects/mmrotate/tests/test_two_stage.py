"""Two-stage detectors of rotated boxes: graphs against mmrotate's own test path, and what is refused."""

import functools

import numpy as np
import pytest
import torch
from two_stage_toys import KINDS, toy

import mm2onnx_mmrotate  # noqa: F401 registers the families
from dev.seeded.weights import seeded_model, seeded_picture
from mm2onnx_mmrotate.polygons import bounds_of_box, box_of_polygon, box_of_upright
from mm2onnx_mmrotate.reference import equal_scores_by_index, rotated_boxes_of_classes
from mm2onnx_mmrotate.two_stage.heads import midpoint_settings
from mm2onnx_mmrotate.two_stage.runtime import detections
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import find_family

VERSIONS = ('le90', 'le135', 'oc')
SIZE = (120, 150)
SCALE = np.array([1.5, 1.2, 1.5, 1.2], np.float32)


@functools.cache
def detector(kind, version):
    cfg = toy(kind, version)
    family = find_family(cfg)
    return family, seeded_model(cfg, family).eval()


def feeds(batch):
    pictures = torch.cat([seeded_picture(7 + index, 128, 160) for index in range(batch)])
    return dict(
        input=pictures,
        img_shape=torch.tensor([SIZE] * batch, dtype=torch.float32),
        scale_factor=torch.from_numpy(SCALE).repeat(batch, 1),
    )


def topk_by_index(values, count, dim=-1):
    """Return the best values and their indices, equal ones in order, as by ONNX; PyTorch's order is any."""
    best, rows = values.sort(dim=dim, descending=True, stable=True)
    return best.narrow(dim, 0, int(count)), rows.narrow(dim, 0, int(count))


def run(family, model, form, batch=2):
    """Return feeds and outputs of all stages of a form by name, in PyTorch, of layers that are not folded."""
    tensors = feeds(batch)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'topk', topk_by_index)
        for stage in family.stages(model, family.choose(height=128, width=160, form=form)):
            outputs = stage.module(*[tensors[name] for name in stage.inputs])
            tensors.update(zip(stage.outputs, outputs, strict=True))
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def by_mmrotate(model, version, batch=2):
    meta = dict(
        img_shape=(*SIZE, 3),
        ori_shape=(*SIZE, 3),
        pad_shape=(128, 160, 3),
        scale_factor=SCALE,
        flip=False,
        flip_direction=None,
    )
    with torch.no_grad(), equal_scores_by_index():
        results = model(
            return_loss=False, rescale=True, img=[feeds(batch)['input']], img_metas=[[meta] * batch]
        )
    return [rotated_boxes_of_classes(result, version) for result in results]


class Metadata:
    def __init__(self, family, model, form):
        self.form, self.postprocess = form, family.facts(model)


CASES = [(kind, 'le90') for kind in KINDS] + [
    pytest.param(kind, version, marks=pytest.mark.matrix)
    for kind in KINDS
    for version in VERSIONS
    if version != 'le90'
]


@pytest.mark.parametrize('kind, version', CASES)
@pytest.mark.parametrize('form', ['full', 'decode', 'raw'])
def test_every_form_gives_mmrotates_results(kind, version, form):
    family, model = detector(kind, version)
    outputs = run(family, model, form)
    found = detections(Metadata(family, model, form), outputs, outputs)
    for results, wanted in zip(found, by_mmrotate(model, version), strict=True):
        assert len(wanted) > 20
        order = np.argsort(-results.scores, kind='stable')
        np.testing.assert_allclose(results.scores[order], wanted.scores, rtol=0, atol=1e-5)
        assert np.array_equal(results.labels[order], wanted.labels)
        np.testing.assert_allclose(results.boxes[order], wanted.boxes, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize('layer', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
def test_layers_that_move_the_cells_of_regions_give_mmrotates_results(layer):
    cfg = toy('faster_rcnn')
    settings = dict(type=layer, output_size=7, output_channels=32, deform_fc_channels=16)
    cfg.model.roi_head.bbox_roi_extractor.roi_layer = settings
    family = find_family(cfg)
    family.check(cfg, family.choose(height=128, width=160))
    model = seeded_model(cfg, family).eval()
    outputs = run(family, model, 'full')
    found = detections(Metadata(family, model, 'full'), outputs, outputs)
    for results, wanted in zip(found, by_mmrotate(model, 'le90'), strict=True):
        assert len(wanted) > 20
        np.testing.assert_allclose(results.scores, wanted.scores, rtol=0, atol=1e-5)
        assert np.array_equal(results.labels, wanted.labels)
        np.testing.assert_allclose(results.boxes, wanted.boxes, rtol=1e-4, atol=2e-3)


def test_a_batch_gives_what_its_images_give_alone():
    family, model = detector('oriented_rcnn', 'le90')
    both, alone = run(family, model, 'full', 2), run(family, model, 'full', 1)
    present = both['labels'][0] >= 0
    np.testing.assert_allclose(both['dets'][0][present], alone['dets'][0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('version', VERSIONS)
def test_polygons_become_mmrotates_boxes(version):
    from mmrotate.core.bbox import transforms

    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2000, 5, generator=generator) * torch.tensor([500.0, 500, 90, 90, 3.0])
    boxes[:, 4] -= 1.5
    polygons = transforms.obb2poly(boxes, 'le90')
    polygons[:500] += torch.randn(500, 8, generator=generator) * 5
    wanted = transforms.poly2obb(polygons, version)
    found = box_of_polygon(torch, polygons[:, 0::2], polygons[:, 1::2], version)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    xp = box_of_polygon(np, polygons[:, 0::2].numpy(), polygons[:, 1::2].numpy(), version)
    np.testing.assert_allclose(xp, wanted, atol=2e-4)
    upright = transforms.obb2xyxy(boxes, 'le90')
    assert torch.equal(box_of_upright(torch, upright, version), transforms.hbb2obb(upright, version))
    torch.testing.assert_close(
        bounds_of_box(torch, boxes, version), transforms.obb2xyxy(boxes, version), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize('version', VERSIONS)
def test_midpoint_offsets_become_mmrotates_boxes(version):
    from mmrotate.core.bbox.coder import MidpointOffsetCoder

    coder = MidpointOffsetCoder((0.0,) * 6, (1.0, 1.0, 1.0, 1.0, 0.5, 0.5), version)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(2000, 4, generator=generator) * 100
    anchors[:, 2:] += anchors[:, :2]
    deltas = torch.randn(2000, 6, generator=generator)
    found = midpoint_settings(coder).boxes(torch, anchors, dict(bbox_pred=deltas[None]), 0)[0]
    torch.testing.assert_close(found, coder.decode(anchors, deltas), rtol=1e-5, atol=2e-4)


def test_two_angle_versions_in_a_head_are_refused():
    cfg = toy('gliding_vertex')
    del cfg.model.roi_head.bbox_head.version  # mmrotate's default is oc
    family = find_family(cfg)
    with pytest.raises(ConfigError, match="version='oc', but its fix_coder has angle_range='le90'"):
        family.check(cfg, family.choose())


def test_raw_files_of_scores_that_are_no_softmax_are_refused():
    cfg = toy('faster_rcnn')
    cfg.model.roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=5)
    family = find_family(cfg)
    decode, raw = (family.choose(height=128, width=160, form=form) for form in ('decode', 'raw'))
    family.check(cfg, decode)
    with pytest.raises(UsageError, match='scores of SeesawLoss are no softmax'):
        family.check(cfg, raw)
    family.check(toy('gliding_vertex'), raw)


def test_redet_is_refused_by_its_layer():
    cfg = toy('roi_transformer')
    cfg.model.roi_head.bbox_roi_extractor[1].roi_layer = dict(
        type='RiRoIAlignRotated', out_size=7, num_samples=2, num_orientations=8, clockwise=True
    )
    family = find_family(cfg)
    with pytest.raises(ConfigError, match='RiRoIAlignRotated: mmcv has no CPU kernel'):
        family.check(cfg, family.choose())


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(num_stages=3), 'refines only upright regions'),
        (dict(agnostic=False), 'uses one box for all classes'),
        (dict(coder='DeltaXYWHAOBBoxCoder'), 'does not fit upright regions'),
    ],
)
def test_what_mmrotate_cannot_run_is_refused_by_name(change, message):
    cfg = toy('roi_transformer')
    roi_head = cfg.model.roi_head
    if 'num_stages' in change:
        roi_head.num_stages = 3
        roi_head.stage_loss_weights = [1, 1, 1]
        rotated = dict(roi_head.bbox_head[1], reg_class_agnostic=True)
        roi_head.bbox_head = [roi_head.bbox_head[0], rotated, roi_head.bbox_head[1]]
        roi_head.bbox_roi_extractor = [*roi_head.bbox_roi_extractor, roi_head.bbox_roi_extractor[1]]
    if 'agnostic' in change:
        roi_head.bbox_head[0].reg_class_agnostic = False
    if 'coder' in change:
        roi_head.bbox_head[0].bbox_coder = roi_head.bbox_head[1].bbox_coder
    family = find_family(cfg)
    with pytest.raises(ConfigError, match=message):
        family.check(cfg, family.choose())
