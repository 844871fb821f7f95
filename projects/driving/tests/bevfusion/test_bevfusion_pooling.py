"""View pooling beside the graphs: tables against those of the engine, sums against a plain reference."""

import numpy as np
import pytest

import bevfusion_golden as golden
from mm2onnx_driving.bevfusion import cuda_loop
from mm2onnx_driving.bevfusion.cuda_loop import pooled, tables_of
from mm2onnx_driving.bevfusion.runtime import ViewFacts
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.frames import FusedFrame

VIEW = ViewFacts(
    image_size=(256, 704),
    columns=tuple(np.linspace(0, 703, 88).tolist()),
    rows=tuple(np.linspace(0, 255, 32).tolist()),
    depths=tuple(np.arange(1, 60, 0.5).tolist()),
    centre=(-53.85, -53.85, 0.0),
    step=(0.3, 0.3, 20.0),
    count=(360, 360, 1),
)
NONE = 360 * 360


def rig():
    return {name: golden.stored('inputs_a')[name] for name in MATRICES}


def test_cells_and_depth_maps_are_those_of_the_original():
    camera = golden.stored('camera_a')
    wrong = np.flatnonzero(cuda_loop.cells(rig(), VIEW) != golden.cells('a'))
    assert np.isin(wrong, camera['bev_cell_ambiguous.idx']).all()
    found = cuda_loop.depth_maps(golden.stored('inputs_a')['points'], rig(), (256, 704)).reshape(-1)
    depth = np.zeros_like(found)
    depth[camera['depth.idx']] = camera['depth.val']
    clear = np.setdiff1d(np.arange(len(found)), camera['depth_amb'])
    assert np.abs(found - depth)[clear].max() < 1e-4


@pytest.mark.parametrize('noise', [1e-13, -1e-13])
def test_a_point_on_a_border_is_in_one_cell_whatever_the_rounding(noise):
    """A camera that looks along an axis puts whole planes of points there."""
    import torch

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mm2onnx_driving.bevfusion.view_transform import cells_of

    step = np.float32(VIEW.step)
    corner = np.float32(VIEW.centre) - step / np.float32(2)
    border = corner.astype(np.float64) + np.arange(361)[:, None] * np.array([0.3, 0.3, 0])
    border[:, 2] = 0.5
    wanted = cuda_loop.cell_numbers(border, VIEW, corner)
    assert len(np.unique(wanted)) > 300
    np.testing.assert_array_equal(cuda_loop.cell_numbers(border * (1 + noise), VIEW, corner), wanted)
    given = (torch.from_numpy(values) for values in (border * (1 + noise), corner, step))
    found = cells_of(*given, torch.tensor(VIEW.count))
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_boxes_are_drawn_where_the_depth_map_has_their_points():
    """`FusedFrame.lidar2img` of a rig whose pictures are cut and whose points are turned."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (40, 5)).astype(np.float32)
    cut, moved = np.tile(np.eye(4), (2, 1, 1)), np.eye(4)
    cut[:, [0, 1], [0, 1]], cut[:, :2, 3] = [[0.5, 0.5], [0.6, 0.6]], [[-20, -60], [10, -90]]
    moved[:2, :2], moved[:3, 3] = 1.1 * np.array([[0.8, -0.6], [0.6, 0.8]]), (1, 2, 0.5)
    seen = np.tile(np.array([[200.0, 0, 400, 0], [0, 200, 225, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (2, 1, 1))
    seen = seen @ np.array([[0, -1.0, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    seen[1, :, :2] *= -1  # looks back
    frame = FusedFrame(points, calibration=dict(img_aug_matrix=cut, lidar2image=seen, lidar_aug_matrix=moved))
    depth = cuda_loop.depth_maps(points, frame.calibration, (256, 400))
    spots = frame.lidar2img @ np.append(points[:, :3], np.ones((40, 1)), 1).T
    x, y = (spots[:, :2] / spots[:, 2:3].clip(1e-5)).swapaxes(0, 1)
    inside = (spots[:, 2] > 1) & (x >= 0) & (x < 400) & (y >= 0) & (y < 256)
    camera, index = np.nonzero(inside)
    assert min(inside.sum(1)) >= 3
    found = depth[camera, 0, y[camera, index].astype(int), x[camera, index].astype(int)]
    np.testing.assert_allclose(found, spots[camera, 2, index], rtol=1e-5)


def engine_cells(calibration, view):
    """Return the cells as CUDA-BEVFusion computes them: (N, D, h, w) int64.

    `calibration` and `view` are those of `cells`. It computes in float32, applies the first camera's image
    augmentation to all cameras, and ignores the augmentation of points.

    Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/src/bevfusion/camera-geometry.cu:90-157
    (its behaviour, no code).
    """
    aug, camera, intrinsics = (
        calibration[name].astype(np.float32)
        for name in ('img_aug_matrix', 'camera2lidar', 'camera_intrinsics')
    )
    sides = zip((view.rows, view.columns), view.image_size, strict=True)
    evenly_spaced = (
        np.arange(len(side), dtype=np.float32) * np.float32((size - 1) / (len(side) - 1))
        for side, size in sides
    )
    depth, y, x = np.meshgrid(np.float32(view.depths), *evenly_spaced, indexing='ij')
    augmented = [x - aug[0, 0, 3], y - aug[0, 1, 3], depth - aug[0, 2, 3]]
    x, y, depth = _transformed(_adjugate_inverse(aug[0, :3, :3]), augmented)
    rays = [x * depth, y * depth, depth]
    corner = np.float64(np.float32(view.centre)) - np.float64(np.float32(view.step)) / 2
    frustum_cells = np.empty((len(camera), *depth.shape), np.int64)
    for index, pose in enumerate(camera):
        points = _transformed(_adjugate_inverse(intrinsics[index, :3, :3]), rays)
        points = [value + pose[axis, 3] for axis, value in enumerate(_transformed(pose[:3, :3], points))]
        frustum_cells[index] = cuda_loop.cell_numbers(np.stack(points, -1).astype(np.float64), view, corner)
    return frustum_cells


def _transformed(matrix, point):
    """Return matrix @ point by the engine's order of multiplications and sums."""
    return [row[0] * point[0] + row[1] * point[1] + row[2] * point[2] for row in matrix]


def _adjugate_inverse(matrix):
    rows = [np.cross(matrix[(axis + 1) % 3], matrix[(axis + 2) % 3]) for axis in range(3)]
    return (np.stack(rows, 1) / np.dot(matrix[0], rows[0])).astype(np.float32)


def test_the_tables_are_those_of_the_engine_to_the_last_number():
    """But for the last point, which the engine loses after the stored lengths; no point is in its cell 0."""
    engine = golden.stored('cpp_tables_a')
    cells = engine_cells(rig(), VIEW)
    assert np.array_equal(np.flatnonzero(cells != golden.cells('a')), engine['flip_idx'])
    tables, remain = tables_of(cells, VIEW.count[:2]), int(engine['remain'])
    assert (cells < NONE).sum() == engine['kept'] and (cells > 0).all()
    starts, ends, places = tables.intervals.T
    assert np.array_equal(np.cumsum(engine['interval_cell_diff']), places)
    assert np.array_equal(ends - starts, engine['interval_length'])
    assert np.array_equal(tables.indices[remain : remain + 4096], engine['indices_first'])
    assert np.array_equal(tables.indices[-64:], engine['indices_last'])


def test_points_are_added_up_in_their_cells_and_none_is_lost():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 13, (2, 3, 4, 5))  # 12 is none
    features = rng.random((2, 4, 5, 10), np.float32)
    weights = rng.random((2, 3, 4, 5), np.float32)
    tables = tables_of(cells, (3, 4))
    sums = np.zeros((13, 10))
    np.add.at(sums, cells, weights[..., None] * features[:, None].astype(np.float64))
    assert np.abs(pooled(features, weights, tables)[0] - sums[:12].T.reshape(10, 3, 4)).max() < 1e-5
    assert (tables.intervals[1:, 0] == tables.intervals[:-1, 1]).all() and tables.intervals[-1, 1] == 120
    with pytest.raises(DataError, match=r'120.*60'):
        pooled(features[:1], weights[:1], tables)


def test_a_rig_that_sees_nothing_has_no_interval():
    tables = tables_of(np.full((1, 2, 2, 2), 12), (3, 4))
    assert len(tables.intervals) == 0
    assert not pooled(np.ones((1, 2, 2, 10), np.float32), np.ones((1, 2, 2, 2), np.float32), tables).any()
