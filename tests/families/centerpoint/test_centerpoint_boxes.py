"""CenterPoint's boxes without PyTorch equal mmdet3d's own `get_bboxes`."""

import numpy as np
import pytest
import torch
from mmcv.ops import nms_rotated
from mmdet3d.core.post_processing import circle_nms as upstream_circle_nms
from mmdet3d.models import build_head

from mmdeploy_ext.families.centerpoint.runtime import CenterPointFacts
from mmdeploy_ext.families.common.runtime.center_boxes import decode, head_settings
from mmdeploy_ext.families.common.samples import BOX_TYPES
from mmdeploy_ext.runtime.bird_eye import circle_nms, rotated_nms
from toy_centerpoint import register

register()  # circle NMS uncompiled
ROWS, COLUMNS = 20, 24
TASKS = [dict(num_class=1, class_names=['car']), dict(num_class=2, class_names=['bus', 'truck'])]
COMMON = dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2))


def make_head(with_velocity=True, norm_bbox=True, **test_cfg):
    limits = [-7.0, -7.0, -10.0, 7.0, 7.0, 10.0]
    heads = {name: value for name, value in COMMON.items() if with_velocity or name != 'vel'}
    return build_head(
        dict(
            type='CenterHead',
            in_channels=8,
            share_conv_channel=8,
            tasks=TASKS,
            common_heads=heads,
            separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3, head_conv=8),
            norm_bbox=norm_bbox,
            bbox_coder=dict(
                type='CenterPointBBoxCoder',
                pc_range=[-9.6, -8.0],
                post_center_range=[-8.0, -8.0, -10.0, 8.0, 8.0, 10.0],
                max_num=60,
                score_threshold=0.05,
                out_size_factor=4,
                voxel_size=[0.2, 0.1],
                code_size=9 if with_velocity else 7,
            ),
            test_cfg={
                **dict(post_center_limit_range=limits, min_radius=[4, 1.5], score_threshold=0.1),
                **dict(nms_type='rotate', pre_max_size=40, post_max_size=25, nms_thr=0.2),
                **test_cfg,
            },
        )
    )


def random_outputs(head, seed, heat=-2.0):
    generator = torch.Generator().manual_seed(seed)
    task_outputs = []
    for count in head.num_classes:
        values = dict(reg=(2, 0.5), height=(1, 1), dim=(3, 0.4), rot=(2, 1), heatmap=(count, 1.5))
        if head.with_velocity:
            values['vel'] = (2, 1)
        drawn = {
            name: scale * torch.randn(1, channels, ROWS, COLUMNS, generator=generator)
            for name, (channels, scale) in values.items()
        }
        drawn['heatmap'] += heat
        drawn['dim'] = drawn['dim'] + 0.5 if head.norm_bbox else drawn['dim'].abs() + 0.5
        task_outputs.append([drawn])
    named = {
        f'{name}_{task}': value.numpy()
        for task, (drawn,) in enumerate(task_outputs)
        for name, value in drawn.items()
    }
    return tuple(task_outputs), named


def upstream(head, task_outputs, convention='1.x'):
    meta = dict(box_type_3d=BOX_TYPES[convention])
    boxes, scores, labels = head.get_bboxes(task_outputs, [meta])[0]
    order = np.argsort(-scores.numpy(), kind='stable')
    return boxes.tensor.numpy()[order], scores.numpy()[order], labels.numpy()[order]


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(nms_type='circle'),
        dict(with_velocity=False),
        dict(norm_bbox=False),
        dict(nms_thr=0.01, pre_max_size=None, post_max_size=None),
        dict(score_threshold=0.0, post_center_limit_range=[]),
    ],
    ids=str,
)
def test_decode_equals_get_bboxes(settings):
    if 'post_center_limit_range' in settings:  # upstream compares with an empty list where there is none
        settings = dict(settings, post_center_limit_range=[-99.0, -99.0, -99.0, 99.0, 99.0, 99.0])
    head = make_head(**settings)
    task_outputs, named = random_outputs(head, 0)
    boxes, scores, labels = upstream(head, task_outputs)
    settings = head_settings(head)
    found = decode(named, CenterPointFacts(**settings))
    assert len(found) == len(scores) > 10
    np.testing.assert_allclose(found.boxes[:, : boxes.shape[1]], boxes, atol=4e-6, rtol=1e-6)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)


def test_suppression_of_0_17_turns_boxes_the_other_way():
    head = make_head()
    task_outputs, named = random_outputs(head, 0)
    places = {}
    for convention in BOX_TYPES:
        boxes, scores, _ = upstream(head, task_outputs, convention)
        found = decode(named, CenterPointFacts(**head_settings(head), box_convention=convention))
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes[:, :3], boxes[:, :3], atol=4e-6)
        places[convention] = set(map(tuple, found.boxes[:, :2]))
    assert places['0.17'] - places['1.x'] and places['1.x'] - places['0.17']


def test_nothing_found_is_an_empty_result():
    head = make_head()
    _, named = random_outputs(head, 0, heat=-30.0)
    found = decode(named, CenterPointFacts(**head_settings(head)))
    assert found.boxes.shape == (0, 9)
    assert len(found) == 0


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    values = [random.uniform(-3, 3, (count, 2)), random.uniform(0.3, 4, (count, 2))]
    return np.concatenate([*values, random.uniform(-4, 4, (count, 1))], axis=1).astype(np.float32)


@pytest.mark.parametrize('threshold', [0.0, 0.2])
def test_rotated_nms_equals_mmcv(threshold):
    boxes = random_boxes(80, 1)
    scores = torch.linspace(1, 0, len(boxes))
    expected = nms_rotated(torch.from_numpy(boxes), scores, threshold)[1].numpy()
    np.testing.assert_array_equal(rotated_nms(boxes, threshold), expected)


def test_circle_nms_compares_squared_distances_as_upstream():
    random = np.random.default_rng(2)
    centres = random.uniform(-5, 5, (60, 2)).astype(np.float32)
    dets = np.concatenate([centres, np.linspace(1, 0.1, 60, dtype=np.float32)[:, None]], axis=1)
    expected = upstream_circle_nms.py_func(dets, 4.0, post_max_size=83)
    np.testing.assert_array_equal(circle_nms(centres, 4.0), expected)
