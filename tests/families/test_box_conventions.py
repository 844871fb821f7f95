"""Heads of anchors and centres of mmdet3d 0.17 and 1.x: boxes by hand, suppression, defaults."""

from types import SimpleNamespace as Names

import numpy as np
import pytest
import torch
from mmdet3d.models import build_voxel_encoder

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_anchor3d
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.anchor3d.family import facts_of
from mmdeploy_ext.families.anchor3d.runtime import AnchorFacts
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.centerpoint.runtime import CenterPointFacts
from mmdeploy_ext.families.common.box_conventions import note_head_convention, with_heights
from mmdeploy_ext.families.common.runtime import anchors3d, center_boxes
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

COLUMNS, ROWS = 60, 12
"""Of the map; its cells are 1 m, and their indices are metres."""
CENTRES = np.float32([[10, 5], [20, 5], [30, 5]])
CORNERS = [
    [(8, 4), (8, 6), (12, 4), (12, 6)],  # ahead
    [(22, 6), (22, 4), (18, 6), (18, 4)],  # to the rear
    [(29.3, 2.4), (27.7, 3.6), (32.3, 6.4), (30.7, 7.6)],  # 3 ahead for 4 to the left
]
"""Of each box: rear right, rear left, front right, front left, metres; x ahead, y to the left."""
TURN = np.arctan2(0.8, 0.6)
CODES = {
    '1.x': [(4, 2, 1.5, 0), (4, 2, 1.5, np.pi), (5, 2, 1.5, TURN)],
    '0.17': [(2, 4, 1.5, -np.pi / 2), (2, 4, 1.5, np.pi / 2), (2, 5, 1.5, -TURN - np.pi / 2)],
}
"""Sizes and yaw of the boxes as a model of each version gives them."""
DIRECTIONS = {'1.x': (-np.pi / 2, 0.0), '0.17': (0.0, 1.0)}


def rows_of(places, codes):
    return [(x, y, *code) for (x, y), code in zip(places, codes, strict=True)]


def of_anchors(rows, convention):
    """Decode maps of a head with one anchor a cell that gives `rows`: x, y, three sizes, yaw."""
    offset, limit = DIRECTIONS[convention]
    rule = AnchorFacts(
        num_classes=1, code_size=7, levels=1, aligned=True, align_corner=True,
        ranges=(0, 0, 0, COLUMNS, ROWS, 0), sizes=(1, 1, 1), rotations=(0,), scales=(1,),
        size_per_range=False, dir_offset=offset, dir_limit_offset=limit, nms_pre=-1, score_thr=0.5,
        nms_thr=0.2, rotated=True, max_num=100, box_convention=convention,
    )  # fmt: skip
    scores = np.full((1, 1, ROWS, COLUMNS), -9, np.float32)
    deltas = np.zeros((1, 7, ROWS, COLUMNS), np.float32)
    directions = np.zeros((1, 2, ROWS, COLUMNS), np.float32)
    for index, (x, y, *sizes, yaw) in enumerate(rows):
        column, row = int(x), int(y)
        scores[0, 0, row, column] = 9 - index
        place = [(x - column) / 2**0.5, (y - row) / 2**0.5, 0]
        deltas[0, :, row, column] = [*place, *np.log(sizes), yaw]
        half = yaw - offset - np.floor((yaw - offset) / np.pi + limit + 1e-6) * np.pi + offset
        directions[0, 1, row, column] = 1 if abs(half - yaw) > 1 else -1
    outputs = dict(cls_score_0=scores, bbox_pred_0=deltas, dir_cls_pred_0=directions)
    return anchors3d.decode(outputs, rule)


def of_centres(rows, convention):
    """Decode maps of a head of one task that gives `rows`."""
    rule = CenterPointFacts(
        num_classes=(1,), voxel_size=(1, 1), pc_origin=(0, 0), out_size_factor=1, max_num=len(rows),
        score_threshold=0.5, post_center_range=(-99, -99, -99, 99, 99, 99), norm_bbox=False,
        with_velocity=False, nms_type='rotate', nms_thr=0.2, nms_score_threshold=0.0, pre_max_size=None,
        post_max_size=None, min_radius=(), post_center_limit_range=(), box_convention=convention,
    )  # fmt: skip
    widths = dict(heatmap=1, reg=2, height=1, dim=3, rot=2)
    maps = {name: np.zeros((1, width, ROWS, COLUMNS), np.float32) for name, width in widths.items()}
    maps['heatmap'] -= 9
    for index, (x, y, *sizes, yaw) in enumerate(rows):
        column, row = int(x), int(y)
        values = dict(heatmap=9 - index, reg=(x - column, y - row), dim=sizes, rot=(np.sin(yaw), np.cos(yaw)))
        for name, value in values.items():
            maps[name][0, :, row, column] = value
    return center_boxes.decode({f'{name}_0': values for name, values in maps.items()}, rule)


def corners_from_above(found: Detections3D):
    x, y, _, length, width, _, yaw = found.boxes[:, :7].T
    ahead, left = np.stack([np.cos(yaw), np.sin(yaw)], 1), np.stack([-np.sin(yaw), np.cos(yaw)], 1)
    centre = np.stack([x, y], 1)
    return np.stack(
        [
            centre + along * length[:, None] / 2 * ahead + across * width[:, None] / 2 * left
            for along in (-1, 1)
            for across in (-1, 1)
        ],
        1,
    )


@pytest.mark.parametrize('decode', [of_anchors, of_centres])
@pytest.mark.parametrize('convention', CODES)
def test_three_boxes_have_their_corners(decode, convention):
    found = decode(rows_of(CENTRES, CODES[convention]), convention)
    np.testing.assert_allclose(corners_from_above(found), CORNERS, atol=1e-4)
    np.testing.assert_allclose(found.boxes[:, 5], 1.5, rtol=1e-6)


@pytest.mark.parametrize('decode', [of_anchors, of_centres])
@pytest.mark.parametrize('convention', CODES)
def test_boxes_one_behind_the_other_suppress_each_other_and_side_by_side_do_not(decode, convention):
    thin = {'1.x': (4, 0.4, 1.5, TURN), '0.17': (0.4, 4, 1.5, -TURN - np.pi / 2)}[convention]
    behind, beside = [(30, 4), (31.2, 5.6)], [(50, 5), (51.2, 3.4)]
    found = decode(rows_of(behind + beside, [thin] * 4), convention)
    np.testing.assert_allclose(found.boxes[:, :2], [behind[0], *beside], atol=1e-5)


def test_a_checkpoint_of_0_17_brings_the_defaults_of_0_17(tmp_path):
    toy_anchor3d.register()
    words = {
        'sizes=[[0.8, 0.6, 1.7], [1.8, 0.6, 1.7], [3.9, 1.6, 1.5]], ': '',
        '(-0.6, -1.0, -1.2)': '(-0.6,)',
    }
    cfg = load_config(toy_anchor3d.write_config(tmp_path, 'kitti', words))
    found = {}
    for version in ('0.17.2', '1.0.0rc6'):
        model = find_family(cfg, 'detector').build(cfg)
        note_head_convention(model, Names(meta=dict(mmdet3d_version=version)), model.bbox_head)
        facts = facts_of(model)
        found[version] = facts.box_convention, facts.dir_offset, facts.dir_limit_offset, facts.sizes[:2]
    assert found['0.17.2'] == ('0.17', 0, 1, (1.6, 3.9))
    assert found['1.0.0rc6'] == ('1.x', pytest.approx(-np.pi / 2), 0, (3.9, 1.6))


@pytest.mark.parametrize('with_distance', [False, True])
@pytest.mark.parametrize('legacy', [False, True])
def test_pillars_of_0_17_have_no_height_from_their_centre(legacy, with_distance):
    encoder = build_voxel_encoder(
        dict(
            type='PillarFeatureNet', in_channels=4, feat_channels=[8], voxel_size=(2, 2, 4), legacy=legacy,
            point_cloud_range=(0, 0, -3, 8, 8, 1), with_distance=with_distance, norm_cfg=dict(type='BN1d'),
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 1, 4, generator=generator)
    weight = torch.rand(8, 9 + with_distance, generator=generator)
    key = 'encoder.pfn_layers.0.linear.weight'
    fitted = with_heights(encoder, 'encoder', Checkpoint('', {key: weight}, {}))
    encoder.pfn_layers[0].linear.weight.data = fitted.state_dict[key]
    from_centre = points[0, :, :2] - 1
    seen = torch.cat([from_centre, points[0, :, 2:]], 1) if legacy else points[0]
    columns = [
        seen,
        torch.zeros(1, 3),
        from_centre,
        *([seen[:, :3].norm(dim=1, keepdim=True)] * with_distance),
    ]
    found = encoder(points, torch.ones(1, dtype=torch.int32), torch.zeros(1, 4, dtype=torch.int32))
    expected = torch.relu(torch.cat(columns, 1) @ weight.T) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
