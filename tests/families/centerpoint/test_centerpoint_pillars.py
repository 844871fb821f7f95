"""CenterPoint with pillars: both files equal mmdet3d's own test path; the encoder at all its settings."""

import numpy as np
import pytest
import torch
from mmdet3d.models.builder import build_middle_encoder, build_voxel_encoder

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_centerpoint
from mmdeploy_ext.families.parts import pillars
from proofs import prove_outputs
from toy_centerpoint import ENGINE, paths_of, sweeps
from verdicts import cases_of, matched_of

RANGE, SIZE = (-4.0, -3.0, -2.0, 4.0, 5.0, 2.0), (0.5, 0.4, 4.0)
N, M, D = 40, 6, 4


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported('pillars')


def test_both_files_are_proven_on_sweeps_that_were_not_traced(toy):
    deployment, folder, *_ = toy
    verdict = prove_outputs(deployment, paths_of(folder), sweeps(2), ENGINE)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 30
    assert {'bev', 'reg_0', 'heatmap_1'} <= {row.tensor for case in cases_of(verdict) for row in case.tensors}


def parts(**changes):
    torch.manual_seed(0)
    cfg = dict(in_channels=D, feat_channels=[8], voxel_size=SIZE, point_cloud_range=RANGE, **changes)
    encoder = build_voxel_encoder(dict(type='PillarFeatureNet', **cfg)).eval()
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.dtype.is_floating_point:
                value.uniform_(0.2, 1.0)
    channels = cfg['feat_channels'][-1]
    return encoder, build_middle_encoder(
        dict(type='PointPillarsScatter', in_channels=channels, output_shape=(20, 16))
    )


def cells():
    """Return the points of pillars, of 1 to all points, in places of their own."""
    random = np.random.default_rng(0)
    place = random.permutation(320)[:N]
    coors = np.stack([0 * place, 0 * place, place // 16, place % 16], 1).astype(np.int32)
    counts = (np.arange(N) % M + 1).astype(np.int32)
    points = random.uniform(-4, 4, (N, M, D)).astype(np.float32)
    points[np.arange(M) >= counts[:, None]] = 0
    return tuple(torch.from_numpy(value) for value in (points, counts, coors))


@pytest.mark.parametrize(
    'changes',
    [
        dict(legacy=False),
        dict(legacy=True, with_distance=True),
        dict(with_cluster_center=False),
        dict(with_voxel_center=False, with_distance=True),
        dict(legacy=False, mode='avg'),
    ],
    ids=str,
)
def test_the_module_equals_mmdet3ds_parts(changes):
    encoder, scatter = parts(**changes)
    points, counts, coors = cells()
    with torch.no_grad():
        expected = scatter(encoder(points.clone(), counts, coors), coors, 1)
        found = pillars.Pillars(encoder, scatter)(points, counts, coors)
    assert pillars.point_width(encoder) == D
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
