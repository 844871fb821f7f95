"""The heads of PETR and PETRv2 with the goldens' seeded weights: boxes and steps of upstream's run.

Tolerances: ../shared/golden/petr/INDEX.md. The suite has parts of a head; the matrix has heads, and whole
networks from pictures on: a frame of PETR R50-DCN, and two of PETRv2 VoVNet-99.
"""

import json

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet.models import DETECTORS
from mmdet3d.models import build_backbone, build_head, build_neck

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import petr_golden as golden
from mm2onnx_driving.petr.steps import depths_of, image_to_lidar, padding_mask, ray_codes, token_corners
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.upstream.models.catalogue import register_named
from projects.configs.petr_model import R50_DCN, VOVNET_99

METRES = [0, 1]
OTHER = [2, 3, 4, 5, 6, 7, 8, 9]
BOUNDS = dict(
    v2=dict(logits=1e-3, metres=5e-3, other=1e-3),
    v1=dict(logits=5e-3, metres=5e-2, other=5e-3),
)
CASES = [
    ('v1vov_rule', 0, 'v2_f5'),
    ('v2_rule', 0, 'v2_f5'),
    ('v2_mask', 1, 'v2_f1'),
]
"""Name in head_only.npz, number of the features, frame of the geometry."""
MASKED = {1: (300, 800, 3), 4: (320, 760, 3), 9: (288, 640, 3)}
"""Picture of v2_mask -> its shape without padding."""


def arrays(name):
    return np.load(golden.require_golden() / name)


def head_of(version):
    head = build_head(golden.head_config(version)).eval()
    prefix = 'pts_bbox_head.'
    weights = golden.state_dict(version, prefix)
    head.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()}, strict=True)
    return head


def close(actual, expected, bound):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=bound)


def same_outputs(outputs, layers, logits, boxes, bounds):
    actual = outputs['all_bbox_preds'][layers].numpy()
    close(outputs['all_cls_scores'][layers], logits, bounds['logits'])
    close(actual[..., METRES], boxes[..., METRES], bounds['metres'])
    close(actual[..., OTHER], boxes[..., OTHER], bounds['other'])


def same_detections(head, logits, boxes, expected):
    """The decoder on upstream's outputs: the same pairs, the bottoms of the boxes."""
    outputs = dict(all_cls_scores=torch.from_numpy(logits), all_bbox_preds=torch.from_numpy(boxes))
    meta = dict(box_type_3d=lambda bottom, size: bottom)
    ((bottom, scores, labels),) = head.get_bboxes(outputs, [meta])
    assert (labels.numpy() == expected['labels_3d']).all()
    close(scores, expected['scores_3d'], 1e-6)
    close(bottom, expected['boxes_3d'], 1e-4)


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['v2', 'v1r50'])
def test_the_filled_weights_are_those_of_the_goldens(name):
    content = json.loads((golden.require_golden() / f'state_dict_{name}.json').read_text())
    assert golden.fill_sha256(golden.state_dict(name)) == content['fill_sha256']


def test_mask_codes_depths_and_boxes_are_upstreams():
    stored = np.load(golden.IN_REPOSITORY / 'head_parts.npz')
    for growth in (0, 1):
        head = build_head(dict(golden.head_config('v2'), LID=bool(growth)))
        close(depths_of(head), stored[f'depth_bins_LID{growth}'], 1e-5)
    mask = padding_mask([MASKED.get(camera, (320, 800, 3)) for camera in range(12)], (320, 800), (20, 50))
    assert (mask.numpy() == stored['masks'][0]).all()
    sine = head.positional_encoding(mask.unsqueeze(0))[0]
    close(sine.detach()[:, ::7, ::5, ::10], stored['sine_slice'], 1e-5)
    same_detections(head, stored['all_cls_scores'], stored['all_bbox_preds'], stored)


@pytest.mark.matrix
@pytest.mark.parametrize(('case', 'number', 'frame'), CASES)
def test_the_head_alone(case, number, frame):
    stored = arrays('head_only.npz')
    expected = {key.removeprefix(f'{case}_'): stored[key] for key in stored.files if key.startswith(case)}
    version = 'v2' if case.startswith('v2') else 'v1r50'
    cameras = 12 if version == 'v2' else 6
    meta = golden.meta_of(frame)
    if version == 'v1r50':
        meta = dict(meta, lidar2img=list(stored['v1vov_lidar2img']))
    shapes = meta['img_shape'][:cameras]
    if case == 'v2_mask':
        shapes = [MASKED.get(camera, shape) for camera, shape in enumerate(shapes)]
    head = head_of(version)
    with torch.no_grad(), collect_taps() as taps:
        outputs = head([golden.features(number)[:, :cameras]], [dict(meta, img_shape=shapes)])
    close(taps['sine'][:, ::7, ::5, ::10], expected['sine_slice'], 1e-5)
    close(taps['sin_pe'][:, ::16, ::5, ::10], expected['sin_pe_slice'], 1e-4)
    close(taps['x_proj'][:, ::16, ::5, ::10], expected['x_proj_slice'].reshape(cameras, 16, 4, 5), 1e-4)
    close(taps['pos_embed'][:, ::16, ::5, ::10], expected['pos_embed_slice'].reshape(cameras, 16, 4, 5), 5e-3)
    if case == 'v2_mask':
        assert (padding_mask(shapes, (320, 800), (20, 50)).numpy() == expected['masks'][0]).all()
    same_outputs(
        outputs,
        [0, 5],
        expected['all_cls_scores'],
        expected['all_bbox_preds'],
        BOUNDS[version[:2]],
    )
    same_detections(head, expected['all_cls_scores'], expected['all_bbox_preds'], expected)


@pytest.mark.parametrize('is_growing', [True, False])
def test_rays_begin_at_corners_of_cells_and_follow_the_depths(is_growing):
    stored = arrays('head_only.npz')
    name = f'LID{int(is_growing)}'
    head = build_head(dict(golden.head_config('v2'), LID=is_growing))
    meta = golden.meta_of('v2_f5')
    codes = ray_codes(
        image_to_lidar(meta['lidar2img']),
        token_corners((320, 800), (20, 50)),
        depths_of(head),
        torch.tensor(head.position_range),
        (20, 50),
    )
    # INDEX.md: two right implementations differ by 2.8e-3 here, and the sigmoid's inverse amplifies
    close(codes[:, ::7, ::5, ::10], stored[f'coords3d_isig_{name}_slice'], 5e-3)


def test_a_displacement_is_divided_by_the_time_between_the_frames():
    inputs, head = arrays('inputs.npz'), build_head(golden.head_config('v2'))
    for frame in range(8):
        seconds = head.seconds(golden.meta_of(f'v2_f{frame}'))
        close(seconds, inputs[f'v2_f{frame}_mean_time_stamp'][0], 1e-6)


def test_a_config_gets_the_detector_that_belongs_to_its_head():
    neck = dict(type='CPFPN', in_channels=[256, 512], out_channels=256, num_outs=2)
    backbone = dict(type='ResNet', depth=18, out_indices=(2, 3))
    model = dict(
        type='Petr3D', img_backbone=backbone, img_neck=neck, pts_bbox_head=golden.head_config('v1r50')
    )
    modules = {}
    for head in ('StreamPETRHead', 'PETRHead', 'StreamPETRHead', 'PETRv2Head'):
        register_named(Config(dict(model=dict(model, pts_bbox_head=dict(type=head)))))
        modules[head] = DETECTORS.get('Petr3D').__module__
    assert {head: module.split('.')[1] for head, module in modules.items()} == dict(
        StreamPETRHead='streampetr', PETRHead='petr', PETRv2Head='petr'
    )


def image_parts(version):
    """Return the backbone and the neck of a model, with the goldens' weights."""
    backbone, channels = dict(R50_DCN, out_indices=(2, 3)), [1024, 2048]
    if version == 'v2':
        backbone, channels = VOVNET_99, [768, 1024]
    parts = []
    neck = dict(type='CPFPN', in_channels=channels, out_channels=256, num_outs=2)
    for prefix, part in (('img_backbone.', build_backbone(backbone)), ('img_neck.', build_neck(neck))):
        weights = golden.state_dict(version, prefix)
        part.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()}, strict=True)
        part.eval()  # mmdet's backbones return None here
        parts.append(part)
    return parts


@pytest.mark.matrix
@pytest.mark.parametrize(('version', 'frames'), [('v1r50', (0,)), ('v2', (4, 5))])
def test_pictures_to_objects(version, frames):
    inputs, stored = arrays('inputs.npz'), arrays('outputs.npz')
    backbone, neck = image_parts(version)
    head = head_of(version)
    last = None
    for number in frames:
        frame = f'{version}_f{number}'
        info = json.loads(str(np.asarray(inputs[f'{frame}_meta_json'])))
        with torch.no_grad():
            maps = backbone(golden.pictures(version, info['info_index'])[0])
            level = neck(list(maps.values()) if isinstance(maps, dict) else maps)[0].unsqueeze(0)
            before = level if last is None else last
            features = torch.cat([level, before], 1) if version == 'v2' else level
            outputs = head([features], [golden.meta_of(frame)])
        last = level
        close(features[:, :, ::16, ::5, ::10], stored[f'{frame}_feat0_slice'], 1e-4)
        logits, boxes = (stored[f'{frame}_all_{name}'] for name in ('cls_scores', 'bbox_preds'))
        same_outputs(outputs, slice(None), logits, boxes, BOUNDS[version[:2]])
        expected = {name: stored[f'{frame}_{name}'] for name in ('boxes_3d', 'scores_3d', 'labels_3d')}
        same_detections(head, logits, boxes, expected)
