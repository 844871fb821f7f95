"""What the runtimes of several systems share, at the borders of its inputs."""

import types

import numpy as np
import pytest

from mm2onnx_driving.bevdet.runtime import BevDetOnnx
from mm2onnx_driving.bevfusion.graphs import RIG_MATRICES
from mm2onnx_driving.bevfusion.runtime import FusionRuntime
from mm2onnx_driving.common.camera import dumped_frame
from mm2onnx_driving.common.runtime.bev_frames import record_of
from mm2onnx_driving.common.runtime.query_boxes import above, at_least, passing
from mm2onnx_driving.petr.runtime import PetrOnnx, camera_times
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.frames import Frame, FusedFrame, StreamState
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from toy_rig import RULE


def test_what_is_kept_of_a_frame_does_not_change_with_the_arrays_of_the_caller():
    pose, record, times = np.eye(4), np.arange(18.0), np.array([1.0, 2.0])
    frame = Frame(np.zeros((2, 3, 1, 1)), None, None, pose, 2.0, None, can_bus=record, camera_times_s=times)
    kept = frame_checks.check_pose(pose), record_of(frame), camera_times(frame)
    for values in (pose, record, times):
        values += 7  # a program that has one buffer for the poses of all frames
    for values, before in zip(kept, (np.eye(4), np.arange(18.0), [1.0, 2.0]), strict=True):
        np.testing.assert_array_equal(values, before)


def test_small_scores_keep_their_order_and_pass_without_a_threshold():
    logits = np.float32([-30, -18, -200, -25, -17.9])
    scores = exact_sigmoid(logits)
    assert scores.dtype == np.float32 and top_rows(scores, 9).tolist() == [4, 1, 3, 0, 2]
    for accepts in (above, at_least, passing):
        assert accepts(scores, None).all() and accepts(scores, 0).all()
        assert accepts(scores, 0.5).sum() == (5 if accepts is passing else 0)
    assert above(np.float32([0.5, 0.6]), 0.5).tolist() == [False, True]
    assert at_least(np.float32([0.5, 0.4]), 0.5).tolist() == [True, False]


LONGEST_S = (StreamPetrOnnx, 2.0), (PetrOnnx, 2.241), (BevDetOnnx, 1.6)


@pytest.mark.parametrize(('runtime', 'longest_s'), LONGEST_S)
def test_a_gap_begins_a_scene_above_the_limit_of_the_family(runtime, longest_s):
    opened, last = types.SimpleNamespace(max_gap_s=runtime.gap_s), StreamState({}, None, 0.0, 'a')
    gaps_s = longest_s - 1e-6, longest_s + 1e-6
    assert [runtime.begins_scene(opened, last, gap_s, 'a') for gap_s in gaps_s] == [False, True]


class Caching(FusionRuntime):
    """A runtime that gives the matrices themselves, kept by some of them."""

    def step(self, frame):
        """Nothing runs."""


def fused():
    (seen,) = synthetic_drive(1, RULE)
    points = np.random.default_rng(0).uniform(-15, 3, (400, 5)).astype(np.float32)
    matrices = dict(
        camera_intrinsics=seen.intrinsics,
        camera2lidar=np.linalg.inv(np.linalg.solve(seen.intrinsics, seen.lidar2img)),
        lidar2image=seen.lidar2img,
        img_aug_matrix=np.tile(np.eye(4), (len(seen.images), 1, 1)),
        lidar_aug_matrix=np.eye(4),
    )
    calibration = {name: np.float32(matrix) for name, matrix in matrices.items()}
    return FusedFrame(points, images=seen.images, calibration=calibration)


@pytest.mark.parametrize('name', RIG_MATRICES)
def test_what_is_kept_of_a_rig_is_computed_again_if_one_matrix_changes(name):
    runtime, frame = Caching(), fused()
    runtime.of_rig(frame.calibration, RIG_MATRICES, dict)
    changed = frame.calibration | {name: frame.calibration[name] * np.float32(1.0001)}
    kept = runtime.of_rig(changed, RIG_MATRICES, dict)
    assert all((kept[key] == changed[key]).all() for key in RIG_MATRICES)


def test_a_dumped_frame_without_a_scene_has_the_unknown_one():
    tensors = dict(img=np.zeros((1, 1, 3, 4, 4)), lidar2img=np.eye(4)[None])
    for manifest in (dict(scene_token=None), {}):
        assert dumped_frame(tensors, manifest).scene_token == ''
    assert dumped_frame(tensors, dict(scene_token='s')).scene_token == 's'
