"""BEVFusion whole against tensors of the original: its parts alone, the chain, depth maps and cells."""

import functools

import numpy as np
import pytest
import torch

import bevfusion_golden as golden
import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from marking import in_suite
from mm2onnx_driving.bevfusion import view_transform as rigs
from mm2onnx_driving.bevfusion.center_head import TransFusionBBoxCoder
from mmdeploy_ext.upstream.operators.cells import LastInCell

HASH = '93d11bc201658e7dfbccd23f09a877f294601748b70a145574cbdbd964182709'
FRUSTUM = rigs.frustum((256, 704), (32, 88), (1.0, 60.0, 0.5))
STEP, FIRST, COUNT = (torch.tensor(row) for row in ((0.3, 0.3, 20.0), (-53.85, -53.85, 0.0), (360, 360, 1)))
TAGS = pytest.mark.parametrize('tag', in_suite(['a', 'b'], 'a'))


@functools.cache
def frame(tag):
    """Return points (P, 5) and the matrices of a stored sample."""
    content = golden.stored(f'inputs_{tag}')
    meta = {name: content[name] for name in rigs.MATRICES}
    return torch.from_numpy(content['points']), meta


def rig(tag):
    return rigs.read_rig([frame(tag)[1]], torch.device('cpu'), 6)


@TAGS
def test_depth_maps_are_those_of_the_original_and_points_stay_as_they_are(tag):
    points, content = frame(tag)[0], golden.stored(f'camera_{tag}')
    before = points.clone()
    found = rigs.depth_maps([points], rig(tag), (256, 704), LastInCell(256 * 704)).numpy().reshape(-1)
    assert torch.equal(points, before)
    wanted = np.zeros_like(found)
    wanted[content['depth.idx']] = content['depth.val']
    clear = np.setdiff1d(np.arange(len(found)), content['depth_amb'])
    assert np.array_equal(found[clear] != 0, wanted[clear] != 0)
    assert np.abs(found - wanted)[clear].max() < 1e-4
    assert np.abs(found[content['depth_dup_pixel']] - content['depth_dup_last']).max() < 1e-4


@TAGS
def test_every_point_of_the_frustum_is_in_the_cell_of_the_original(tag):
    wanted, camera = golden.cells(tag).reshape(-1), golden.stored(f'camera_{tag}')
    points = rigs.seen_points(FRUSTUM, rig(tag))
    found = rigs.cells_of(points, FIRST - STEP / 2, STEP, COUNT).numpy().reshape(-1)
    clear = np.setdiff1d(np.arange(len(found)), camera['bev_cell_ambiguous.idx'])
    assert np.array_equal(found[clear], wanted[clear])


@pytest.mark.parametrize('threshold', ['0', '0.12'])
def test_boxes_are_decoded_filtered_and_the_predictions_left_alone(threshold):
    content = golden.stored('decode_extra')
    coder = TransFusionBBoxCoder(
        [-54.0, -54.0], 8, [0.075, 0.075], [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], float(threshold), 10
    )
    given = [torch.from_numpy(content[name]) for name in ('score', 'reg', 'height', 'dim', 'rot', 'vel')]
    before = [value.clone() for value in given]
    (found,) = coder.decode(*given)
    for key, name in (('bboxes', 'bboxes'), ('scores', 'scores'), ('labels', 'labels')):
        assert np.abs(found[key].numpy() - content[f'coder_thr{threshold}.{name}']).max() < 1e-4
    assert all(map(torch.equal, before, given))


@pytest.mark.matrix
def test_the_parameters_are_those_of_the_checkpoints():
    assert golden.model()[1] == HASH


@pytest.mark.matrix
@torch.no_grad()
def test_each_part_alone_gives_the_tensors_of_the_original():
    model, content = golden.model()[0], golden.stored('parts')
    transform, head = model.encoders['camera']['vtransform'], model.heads['object']
    depth = golden.part('depth').flatten(0, 1)
    weights, features = transform.lift(model.camera_maps(golden.part('img').flatten(0, 1)), depth)
    assert golden.difference(content, 'camera_depth_weights', weights) < 1e-6
    features = features.permute(0, 2, 3, 1).contiguous()
    assert golden.difference(content, 'camera_feature', features) < 5e-5
    seen = transform.downsample(golden.part('feat_in'))
    assert golden.difference(content, 'feat_out', seen) < 5e-5
    joint = model.joined([golden.part('camera'), golden.part('lidar')])
    assert golden.difference(content, 'middle_out', joint) < 5e-5
    found = head(golden.part('middle'))
    assert golden.heat_difference(content['head.dense_heatmap'], found['dense_heatmap']) < 1e-4
    assert np.abs(head.scores(found).numpy() - content['head.score']).max() < 1e-5
    for name, key in dict(center='reg', height='height', dim='dim', rot='rot', vel='vel').items():
        assert np.abs(found[name].numpy() - content[f'head.{key}']).max() < 1e-4, name
    (boxes,) = head.get_bboxes(found)
    assert np.array_equal(boxes['labels'].numpy(), content['head.labels_3d'])
    assert np.abs(boxes['bboxes'].numpy() - content['head.boxes_3d']).max() < 1e-3


@TAGS
@pytest.mark.matrix
@torch.no_grad()
def test_the_chain_with_the_stored_depth_and_cells_gives_the_same_200_boxes(tag):
    model, points = golden.model()[0], frame(tag)[0]
    transform, head = model.encoders['camera']['vtransform'], model.heads['object']
    camera, content = golden.stored(f'camera_{tag}'), golden.stored(f'head_{tag}')
    lidar, cells = golden.stored(f'lidar_fuser_{tag}'), torch.from_numpy(golden.cells(tag))[None]
    depth = np.zeros((6, 1, 256, 704), np.float32)
    depth.reshape(-1)[camera['depth.idx']] = camera['depth.val']
    maps = model.camera_maps(golden.picture(tag).flatten(0, 1))
    pooled = transform.pool(*transform.lift(maps, torch.from_numpy(depth)), cells)
    assert golden.difference(camera, 'feat_in', pooled) < 2e-5
    seen, swept = transform.downsample(pooled), model.lidar_view([points])
    assert golden.difference(camera, 'feat_out', seen) < 2e-5
    assert golden.difference(lidar, 'lidar_feature', swept) < 1e-4
    joint = model.joined([seen, swept])
    assert golden.difference(lidar, 'middle', joint) < 1e-4
    found = head(joint)
    assert golden.heat_difference(content['dense_heatmap'], found['dense_heatmap']) < 2e-4
    top = head.proposals(head.peaks(found['dense_heatmap'].sigmoid()))[0].numpy()
    assert set(top) == set(content['top'])
    (boxes,) = head.get_bboxes(found)
    order = np.argsort(top, kind='stable'), np.argsort(content['top'], kind='stable')
    if np.array_equal(top, content['top']):
        assert np.abs(boxes['bboxes'].numpy() - content['boxes_3d']).max() < 1e-3
        assert np.abs(boxes['scores'].numpy() - content['scores_3d']).max() < 1e-4
    for name in ('center', 'height', 'dim', 'rot', 'vel'):
        pair = found[name].numpy()[0][:, order[0]], content[f'pred.{name}'][0][:, order[1]]
        assert np.abs(pair[0] - pair[1]).max() < 5e-4, name


@TAGS
@pytest.mark.matrix
@torch.no_grad()
def test_left_to_itself_it_finds_the_proposals_of_the_original(tag):
    model, (points, meta) = golden.model()[0], frame(tag)
    found = model.predictions(golden.picture(tag), [points], [meta])
    content = golden.stored(f'head_{tag}')
    assert golden.heat_difference(content['dense_heatmap'], found['dense_heatmap']) < 0.06
    head = model.heads['object']
    top = head.proposals(head.peaks(found['dense_heatmap'].sigmoid()))[0].numpy()
    assert len(np.intersect1d(top, content['top'])) >= 195
