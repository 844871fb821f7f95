"""MVX-Net through its three files equals mmdet3d's own test path; faults in ours are not proven."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_mvxnet
from marking import in_suite
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.families.anchor3d.mvxnet import graphs
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, FEATURES, in_order
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.preprocess.points import assigned
from mmdeploy_ext.proving.ladder import prove

ENGINE = dict(engine='OnnxRuntimeBackend')


def paths_of(folder):
    return [str(Path(folder) / f'{name}.onnx') for name in ('voxels', 'backbone', 'head')]


def test_three_files_are_proven_on_frames_of_other_cameras_and_sizes():
    deployment, folder, *_ = toy_mvxnet.exported()
    verdict, _ = prove(deployment, paths_of(folder), toy_mvxnet.frames(deployment, 3), ENGINE)
    assert verdict.proven, verdict.reasons
    assert sum(row.matched for case in verdict.cases for row in case.detections) >= 100
    tensors = {row.tensor for case in verdict.cases for row in case.tensors}
    assert tensors == {FEATURES, 'bev', 'cls_score_0', 'bbox_pred_0', 'dir_cls_pred_0'}
    spec = read_metadata(paths_of(folder)[0]).spec
    assert spec.input_names == ['img', 'lidar2image', 'img_aug_matrix', 'points', 'rows', 'coors']
    assert verdict.differing_methods == []


# ---- frames


def test_frames_have_what_files_can_get_wrong():
    deployment, *_ = toy_mvxnet.exported()
    rule, places, sizes = deployment.rule, [], set()
    for frame in toy_mvxnet.frames(deployment, 3):
        points, rows, coors = in_order(*assigned(frame.points, rule.voxels))
        lidar2image, img_aug = (torch.from_numpy(frame.calibration[name][0]) for name in CAMERA)
        xyz = torch.from_numpy(points[:, :3])
        depths = xyz @ lidar2image[2, :3] + lidar2image[2, 3]
        height, width = frame.images.shape[2:]
        x, y = graphs.project(xyz, lidar2image, img_aug).T
        inside = (x > 0) & (x < width) & (y > 0) & (y < height)
        in_front, behind = ((inside & (sign * depths > 0)).sum().item() for sign in (1, -1))
        counts = np.bincount(rows)
        assert counts.min() == 1 and counts.max() >= 30
        places.append((in_front, behind, (~inside).sum().item()))
        sizes.add((height, width))
        np.testing.assert_array_equal(coors, np.unique(coors, axis=0))
    assert min(map(max, zip(*places, strict=True))) >= 30
    assert len(sizes) >= 2


# ---- the voxel encoder

SETTINGS = {
    'means': {'in_channels=4, feat_channels=[8, 8]': "in_channels=4, feat_channels=[8, 8], mode='avg'"},
    'three layers, distances': {
        'feat_channels=[8, 8], with_distance=False': 'feat_channels=[8, 6, 8], with_distance=True'
    },
    'points alone': {
        'with_cluster_center=True, with_voxel_center=True': 'with_cluster_center=False, '
        'with_voxel_center=False'
    },
    'features below 0': {'activate_out=True': 'activate_out=False'},
    'a layer behind the sum': {
        'mid_channels=8, out_channels=16': 'mid_channels=16, out_channels=16',
        'fuse_out=False': 'fuse_out=True',
    },
    'edges': {'align_corners=False': "align_corners=True, padding_mode='border'"},
    'the nearest pixel': {'align_corners=False': 'aligned=False'},
    'two levels': {'img_levels=[0, 1, 2, 3, 4]': 'img_levels=[1, 3]'},
    'levels as they are': {'img_levels=[0, 1, 2, 3, 4]': 'img_levels=[0, 1], lateral_conv=False'},
}
IN_SUITE = 'features below 0', 'levels as they are'


@pytest.mark.parametrize('name', in_suite(SETTINGS, *IN_SUITE))
def test_voxels_of_other_settings_equal_mmdet3ds(tmp_path, name):
    toy_mvxnet.register()
    cfg = load_config(toy_mvxnet.write_config(tmp_path, words=SETTINGS[name]))
    family = find_family(cfg)
    torch.manual_seed(0)
    model, rule = family.build(cfg), family.preprocess_rule(cfg)
    for norm in model.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.bias.data.normal_()
    (frame,) = family.generated_sweeps(rule, 1)
    frame = dataclasses.replace(frame, points=toy_mvxnet.sweep(3, 500)[:, :4])
    expected = family.reference(model).step(frame).outputs[FEATURES]
    inputs = frame.images, *(frame.calibration[name][0] for name in CAMERA)
    tensors = map(torch.from_numpy, (*inputs, *in_order(*assigned(frame.points, rule.voxels))))
    with torch.no_grad():
        features = graphs.VoxelFeatures(model)(*tensors).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())


# ---- planted faults


def calls(name, change):
    """Return a fault: a function of `graphs` whose arguments, by `change`, are other ones."""
    original = getattr(graphs, name)
    return name, lambda *arguments, **settings: original(*change(*arguments), **settings)


def sampling(**changes):
    original = graphs.grid_sample
    return 'grid_sample', lambda level, grid, **settings: original(level, grid, **{**settings, **changes})


def encoding(**changes):
    original = graphs.encode_points
    return 'encode_points', lambda *arguments, **settings: original(*arguments, **{**settings, **changes})


def frozen(xyz, lidar2image, img_aug_matrix):
    camera = torch.tensor([[9.0, -5, 0, 1], [4, 0, -5, 1], [1, 0, 0, 1], [0, 0, 0, 1]])
    return xyz, camera + 0 * lidar2image, img_aug_matrix


def unscaled(xyz, lidar2image, img_aug_matrix):
    keep = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    return xyz, lidar2image, img_aug_matrix * keep + torch.diag(torch.tensor([1.0, 1, 0, 0]))


def never_behind():
    original = graphs.project

    def project(xyz, lidar2image, img_aug_matrix):
        pixels = original(xyz, lidar2image, img_aug_matrix)
        behind = (xyz @ lidar2image[2, :3] + lidar2image[2, 3])[:, None] < 0
        return torch.where(behind, pixels.new_full((), -1e4), pixels)

    return 'project', project


def level_left_out(fusion, maps, grid, features):
    return fusion, [*maps[:-1], 0 * maps[-1]], grid, features


FAULTS = {
    'a frozen camera': lambda: calls('project', frozen),
    'no scale of the picture': lambda: calls('project', unscaled),
    'no shift of the picture': lambda: calls(
        'project', lambda xyz, camera, aug: (xyz, camera, aug * torch.eye(4))
    ),
    'a picture that is not flipped': lambda: calls(
        'project', lambda xyz, camera, aug: (xyz, camera, torch.cat([aug[:, :3].abs(), aug[:, 3:]], 1))
    ),
    'nothing behind the camera': never_behind,
    'corners aligned': lambda: sampling(align_corners=True),
    'edges that go on': lambda: sampling(padding_mode='border'),
    'the nearest pixel': lambda: sampling(mode='nearest'),
    'mean instead of maximum': lambda: encoding(averaged=True),
    'a level left out': lambda: calls('fuse_picture', level_left_out),
    'levels in the other order': lambda: calls(
        'fuse_picture', lambda fusion, maps, grid, features: (fusion, maps[::-1], grid, features)
    ),
    'maxima of 0.5 or more': lambda: encoding(least=0.5),
    'x and y of a pixel': lambda: calls(
        'fuse_picture', lambda fusion, maps, grid, features: (fusion, maps, grid.flip(1), features)
    ),
}
FAULTS_IN_SUITE = ('a frozen camera',)


@pytest.mark.parametrize('name', in_suite(FAULTS, *FAULTS_IN_SUITE))
def test_a_fault_in_our_own_graph_is_not_proven(monkeypatch, tmp_path, name):
    deployment, *_ = toy_mvxnet.exported()
    monkeypatch.setattr(graphs, *FAULTS[name]())
    deployment = dataclasses.replace(deployment)
    options = deploy.resolve_opset(deployment.family.choose(opset=0), deployment.model)
    paths, _ = export_files(deployment, options, str(tmp_path / 'graphs'))
    verdict, _ = prove(deployment, paths, toy_mvxnet.frames(deployment, 3), ENGINE)
    assert all(graph.passed for graph in verdict.graphs)  # a fresh export has the fault, too
    assert not verdict.proven
    assert any(not row.passed for case in verdict.cases for row in case.tensors)
