"""The port of lidar_centerpoint computes the numbers of the node's own tests, and what its formulas say."""

import dataclasses
import math

import numpy as np

import toy_autoware
from mm2onnx_driving.autoware import boxes
from mm2onnx_driving.autoware.boxes import CenterPointSettings
from mm2onnx_driving.autoware.centerpoint import decorated, scattered
from mmdeploy_ext.runtime.detections3d import Detections3D

HALF = math.sqrt(0.5)


def settings(**changes):
    """Return the settings of the node's tests: range 76.8 m, pillars of 0.32 m."""
    given = dict(
        class_names=('CAR', 'TRUCK', 'PEDESTRIAN'),
        has_twist=True,
        point_feature_size=4,
        encoder_in_feature_size=9,
        max_voxel_size=40000,
        point_cloud_range=(-76.8, -76.8, -4.0, 76.8, 76.8, 6.0),
        voxel_size=(0.32, 0.32, 10.0),
        downsample_factor=1,
        yaw_norm_thresholds=(0.0, 0.0, 0.0),
        limits=(200.0,),
        scores=((0.35, 0.35, 0.35),),
    )
    return CenterPointSettings(**{**given, **changes})


def test_a_point_is_decorated_as_in_the_nodes_test():
    features, at = decorated(np.float32([[25.0, -61.1, 1.8, 0.1]]), settings())
    assert at.tolist() == [[49, 318]]
    centre = 0.16 + 318 * 0.32 - 76.8, 0.16 + 49 * 0.32 - 76.8
    wanted = [25.0, -61.1, 1.8, 0.1, 0, 0, 0, 25.0 - centre[0], -61.1 - centre[1]]
    np.testing.assert_allclose(features[0, 0], wanted, atol=1e-4)
    assert not features[0, 1:].any()


def test_the_first_points_of_a_pillar_count_and_the_front_pillars_of_too_many():
    given = np.float32([[x + 0.1, 0.1, 0.0, index * 0.001] for index, x in enumerate([0, 5, 9] * 40)])
    features, at = decorated(given, settings(max_voxel_size=2))
    assert at[:, 1].tolist() == [268, 255]
    np.testing.assert_allclose(features[0, :, 3], np.arange(2, 98, 3) * 0.001, atol=1e-6)


def test_bounds_are_inclusive_below_and_exclusive_above():
    given = np.float32([[-76.8, -76.8, -4.0, 0], [76.8, 0, 0, 0], [0, 0, 6.0, 0]])
    _, at = decorated(given, settings())
    assert at.tolist() == [[0, 0]]


def test_the_map_has_y_before_x():
    small = settings(point_cloud_range=(0.0, 0.0, -2.0, 8.0, 4.0, 2.0), voxel_size=(0.5, 0.5, 4.0))
    canvas = scattered(np.ones((1, 1, 32), np.float32), np.array([[1, 2]]), small)
    assert canvas.shape == (1, 32, 8, 16) and canvas[0, :, 1, 2].all() and canvas.sum() == 32


def outputs(given, **changes):
    """Return zeros, and low scores, of a head but for one cell of the node's test: x 70, y -38.4."""
    width, height = given.grid
    sizes = dict(heatmap=3, reg=2, height=1, dim=3, rot=2, vel=2)
    found = {name: np.zeros((1, count, height, width), np.float32) for name, count in sizes.items()}
    found['heatmap'] -= 10
    x, y = (70 + 76.8) / 0.32, (-38.4 + 76.8) / 0.32
    values = dict(
        heatmap=[-10, -10, 1],
        reg=[x - int(x), y - int(y)],
        height=[1],
        dim=[math.log(7), math.log(1), math.log(2)],
        rot=[HALF, HALF],
        vel=[5, -5],
    )
    for name, value in {**values, **changes}.items():
        found[name][0, : len(value), int(y), int(x)] = value
    return found


def test_a_cell_is_decoded_as_in_the_nodes_test():
    found = boxes.decode(outputs(settings()), settings())
    assert found.labels.tolist() == [2]
    # z of the bottom, length first
    box = [70, -38.4, 0, 1, 7, 2, -math.pi / 4 - math.pi / 2, 5, -5]
    np.testing.assert_allclose(found.boxes, [box], atol=1e-4)
    np.testing.assert_allclose(found.scores, [1 / (1 + math.exp(-1))], rtol=1e-5)


def test_cells_of_two_voxels_of_unequal_sides_are_decoded():
    given = settings(
        point_cloud_range=(-8.0, -2.0, -4.0, 8.0, 2.0, 6.0),
        voxel_size=(0.5, 0.25, 10.0),
        downsample_factor=2,
        yaw_norm_thresholds=(0.0, 0.0, 1.0),
        has_twist=False,
    )
    sizes = dict(heatmap=3, reg=2, height=1, dim=3, rot=2, vel=2)
    maps = {name: np.zeros((1, count, 8, 16), np.float32) for name, count in sizes.items()}
    maps['heatmap'] -= 10
    for name, values in dict(heatmap=[-10, -10, 1], reg=[0.5, 0.25], rot=[1, 0], vel=[5, -5]).items():
        maps[name][0, :, 6, 3] = values
    (found,) = boxes.decode(maps, given).boxes
    assert found.tolist() == [-4.5, 1.125, -0.5, 1, 1, 1, np.float32(-np.pi), 0, 0]


def test_a_score_reaches_the_threshold_of_the_bin_that_its_distance_begins():
    given = settings(limits=(5.0, 9.0), scores=((0.6, 0.6, 0.0), (0.5, 0.5, 0.0)))
    xy = np.float32([[3, 4], [0, 2], [0, 9], [1, 1]])
    passed = boxes.passing(xy, np.float32([0.5, 0.5, 0.9, 0]), np.array([0, 1, 0, 2]), given)
    assert passed.tolist() == [True, False, False, False]


def test_a_short_sine_and_cosine_is_no_box():
    strict = settings(yaw_norm_thresholds=(0.5, 0.5, 0.5))
    assert len(boxes.decode(outputs(strict, rot=[0.1, 0.17]), strict).scores) == 0
    assert len(boxes.decode(outputs(strict), strict).scores) == 1


def objects(rows):
    """Return objects of x, y, length, width, label; best first."""
    rows = np.float32(rows)
    found = np.zeros((len(rows), 9), np.float32)
    found[:, [0, 1, 3, 4]], found[:, 5] = rows[:, :4], 1
    return Detections3D(found, np.linspace(1, 0.5, len(rows), dtype=np.float32), rows[:, 4].astype(np.int64))


def test_three_boxes_are_left_in_the_nodes_test_of_overlap():
    given = objects([(0, 0, 4, 2, 0), (0.5, 0.5, 4, 2, 0), (5, 5, 4, 2, 0), (0, 0, 0.5, 0.5, 1)])
    assert boxes.overlap_nms(given, set(), 0.2, 1.0).tolist() == [0, 2, 3]


def test_what_was_dropped_drops_others_and_pedestrians_stand_alone():
    row = objects([(0, 0, 4, 2, 0), (2, 0, 4, 2, 0), (4, 0, 4, 2, 0)])
    assert boxes.overlap_nms(row, set(), 0.2, 10.0).tolist() == [0]
    mixed = objects([(0, 0, 1, 1, 0), (0.1, 0, 1, 1, 2), (0.2, 0, 1, 1, 2)])
    assert boxes.overlap_nms(mixed, {2}, 0.2, 10.0).tolist() == [0, 1]


def test_two_boxes_in_one_place_are_one_and_half_a_metre_is_far_enough():
    given = objects([(0, 0, 0.1, 0.1, 0), (0, 0, 0.1, 0.1, 1), (0.5, 0, 0.1, 0.1, 0)])
    found = boxes.suppressed(given, ('CAR',))
    assert found.boxes[:, 0].tolist() == [0, 0.5]


def test_the_nodes_limits_of_overlap_are_a_tenth_and_ten_metres():
    row = objects([(0, 0, 22, 2, 0), (-15, 0, 22, 2, 0), (9.5, 0, 22, 2, 1), (0.5, 0.5, 22, 2, 2)])
    found = boxes.suppressed(row, ('CAR', 'TRUCK', 'PEDESTRIAN'))
    assert found.boxes[:, 0].tolist() == [0, -15, 0.5]
    wide = objects([(0, 0, 4, 1, 0), (0, 0.75, 4, 1, 0), (3.5, 0, 4, 1, 0)])  # IoUs of 1 / 7 and 1 / 15
    assert boxes.suppressed(wide, ('CAR',)).boxes[:, 0].tolist() == [0, 3.5]
    pairs = objects(
        [(0, 0, 4, 2, 0), (1, 0, 2, 2, 0), *[(9, 0, 0.2, 0.2, 0)] * 2, *[(9, 9, 0.05, 0.05, 0)] * 2]
    )
    assert boxes.overlap_nms(pairs, set(), 0.5, 10.0).tolist() == [0, 1, 2, 4, 5]


def test_settings_are_those_of_the_manifest():
    found = CenterPointSettings.of(toy_autoware.CENTERPOINT)
    assert found.scores.tolist() == [[0.4, 0.4, 0.4], [0.3, 0.3, 0.3]] and found.grid == (16, 8)


def test_eleven_values_are_those_of_another_exporters_test():
    small = settings(
        point_feature_size=5,
        encoder_in_feature_size=11,
        point_cloud_range=(0.0, 0.0, -2.0, 8.0, 8.0, 2.0),
        voxel_size=(0.5, 0.5, 4.0),
    )
    features, at = decorated(np.float32([[1.25, 0.9, -0.5, 7, 0.05]]), small)
    assert at.tolist() == [[1, 2]]
    np.testing.assert_allclose(features[0, 0], [1.25, 0.9, -0.5, 7, 0.05, 0, 0, 0, 0, 0.15, -0.5], atol=1e-6)
    ten = dataclasses.replace(small, point_feature_size=4, encoder_in_feature_size=10)
    assert decorated(np.float32([[1.25, 0.9, -0.5, 7]]), ten)[0].shape == (1, 32, 10)
