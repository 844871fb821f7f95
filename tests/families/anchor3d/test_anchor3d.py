"""PointPillars and SECOND through both files equal mmdet3d's own test path; faults in ours are refused."""

import dataclasses

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_anchor3d
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.anchor3d.family import facts_of
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.families.common.pillars import DynamicPillars
from mmdeploy_ext.families.common.runtime import anchors3d as runtime
from mmdeploy_ext.runtime.preprocess.points import assigned
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.preparation import VoxelRule
from proofs import prove
from toy_centerpoint import ENGINE, paths_of, sweep, sweeps
from verdicts import cases_of, matched_of


@pytest.mark.parametrize('kind', in_suite(toy_anchor3d.KINDS, 'old', 'pointpillars', 'dynamic_voxels'))
def test_both_files_are_proven_on_sweeps_that_were_not_traced(kind):
    detector, folder, *_ = toy_anchor3d.exported(kind)
    verdict = prove(detector, paths_of(folder), sweeps(3), ENGINE, timed=False)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 30
    names = {row.tensor for case in cases_of(verdict) for row in case.tensors}
    levels = 2 if kind == 'nuscenes' else 1
    assert {read_metadata(path).spec.name.split('/')[0] for path in paths_of(folder)} == {'anchor3d'}
    assert names == {'bev', *(f'{name}_{level}' for name in runtime.OUTPUTS for level in range(levels))}


@pytest.mark.parametrize('kind', ['kitti', 'nuscenes', 'voxels'])
def test_anchors_equal_mmdet3ds(tmp_path, kind):
    toy_anchor3d.register()
    cfg = load_config(toy_anchor3d.write_config(tmp_path, kind))
    model = find_family(cfg, 'detector').build(cfg)
    head = parts_of(model).head
    rule, sizes = facts_of(model), [(16, 12), (8, 6)][: head.anchor_generator.num_levels]
    expected = head.anchor_generator.grid_anchors(sizes, device='cpu')
    for level, (height, width) in enumerate(sizes):
        wanted = expected[level].reshape(-1, head.box_code_size).numpy()
        np.testing.assert_allclose(runtime.anchors_of(rule, level, height, width), wanted, atol=2e-6)


def test_anchors_of_classes_with_maps_of_their_own_equal_mmdet3ds():
    detector, folder, *_ = toy_anchor3d.exported('shapes')
    rule = read_metadata(paths_of(folder)[-1]).postprocess
    assert rule.cells == (20, 16, 20, 16, 10, 8)
    generator = detector.model.pts_bbox_head.anchor_generator
    other = dataclasses.replace(rule, cells=(6, 4, 6, 4, 3, 2))
    for chosen, sizes in ((rule, [(20, 16), (20, 16), (10, 8)]), (other, [(6, 4), (6, 4), (3, 2)])):
        (expected,) = generator.grid_anchors(sizes, device='cpu')
        np.testing.assert_allclose(runtime.anchors_by_range(chosen), torch.cat(expected).numpy(), atol=2e-6)


@pytest.mark.parametrize(('mode', 'distance'), [('max', True), ('avg', False)])
def test_pillars_of_all_their_points_equal_upstreams_encoder(mode, distance):
    toy_anchor3d.register()
    from mmdet3d.models.builder import build_middle_encoder, build_voxel_encoder

    limits, size = (-6.4, -4.8, -1.6, 6.4, 6.0, 1.6), (0.4, 0.3, 3.2)
    torch.manual_seed(0)
    encoder = build_voxel_encoder(
        dict(type='DynamicPillarFeatureNet', in_channels=5, feat_channels=[8, 6], with_distance=distance,
             mode=mode, voxel_size=size, point_cloud_range=limits)
    ).eval()  # fmt: skip
    scatter = build_middle_encoder(dict(type='PointPillarsScatter', in_channels=6, output_shape=[36, 32]))
    for norm in (layer[1] for layer in encoder.pfn_layers):
        norm.running_mean.normal_()
        norm.bias.data.normal_()
    rule = VoxelRule(limits, size, -1, -1, 'zyx', 5, 'dynamic')
    points = sweep(4, 500, spread=1.2)
    kept, rows, coors = map(torch.from_numpy, assigned(points, rule))
    assert 0 < len(kept) < len(points) and len(coors) < len(kept)
    cells = np.floor((kept[:, :3].numpy() - np.float32(limits[:3])) / np.float32(size))
    np.testing.assert_array_equal(coors[rows.long(), 1:].numpy(), cells[:, ::-1])
    with torch.no_grad():
        found = DynamicPillars(encoder, scatter)(kept, rows, coors)
        expected = scatter(*encoder(kept, coors[rows.long()].contiguous()), 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ('kind', 'words', 'message'),
    [
        ('kitti', {"type='Anchor3DHead'": "type='ShapeAwareHead'"}, 'ShapeAwareHead'),
        ('kitti', {"'FocalLoss', use_sigmoid=True": "'CrossEntropyLoss', use_sigmoid=False"}, 'use_sigmoid'),
        ('shapes', {', nms_thr=0.1': ''}, 'nms_thr'),
        ('kitti', {'load_dim=5, use_dim=5': 'load_dim=5, use_dim=4'}, 'in_channels'),
        ('dynamic', {"'DynamicVoxelNet'": "'VoxelNet'"}, "type='DynamicPillarFeatureNet'"),
        ('voxels', {"'VoxelNet'": "'SASSD'"}, 'SparseEncoderSASSD'),
    ],
)
def test_what_is_not_exported_is_refused_by_name(tmp_path, kind, words, message):
    toy_anchor3d.register()
    cfg = load_config(toy_anchor3d.write_config(tmp_path, kind, words=words))
    with pytest.raises(ConfigError, match=message):
        family = find_family(cfg, 'detector')
        family.check(cfg, family.choose(opset=0))


def test_a_head_without_a_loss_has_mmdet3ds(tmp_path):
    toy_anchor3d.register()
    cfg = load_config(toy_anchor3d.write_config(tmp_path, 'kitti'))
    family = find_family(cfg, 'detector')
    del cfg.model.bbox_head.loss_cls
    cfg.test_cfg = cfg.model.pop('test_cfg')  # where mmdet3d had it first
    family.check(cfg, family.choose(opset=0))
