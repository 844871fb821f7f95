"""The streaming runtime is the unpatched model, frame by frame; its memory, resets and refusals."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import toy_streampetr_deploy as deployed
import toy_streampetr_export as toy
from mm2onnx_driving.streampetr.memory import to_local
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx
from mm2onnx_driving.streampetr.targets.streampetr_fork import ForkOnnx
from mmdeploy_ext.base.errors import DataError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.runtime.geometry import invert_pose
from toy_streampetr import HEIGHT, WIDTH

BOX = np.array([5e-3] * 3 + [1e-3] * 7)


@pytest.fixture(scope='module')
def opened():
    with StreamPetrOnnx(deployed.files(), threads=1) as runtime:
        yield runtime


@pytest.fixture
def runtime(opened):
    opened.reset()
    return opened


def assert_close(found, wanted):
    np.testing.assert_allclose(found['all_cls_scores'], wanted['all_cls_scores'], rtol=0, atol=1e-3)
    assert (np.abs(found['all_bbox_preds'] - wanted['all_bbox_preds']) <= BOX).all()


# ---- the same numbers


@pytest.mark.parametrize(
    ('opens', 'options'),
    [
        (StreamPetrOnnx, {}),
        (ForkOnnx, dict(contract='fork', fork_version='1.1', fork_img2lidar='depth')),
    ],
    ids=str,
)
def test_files_equal_the_unpatched_model_over_a_scene_change(opens, options):
    """The second scene begins with the pictures of the first; results outlive the frames behind them."""
    frames = [toy.frame(i) for i in range(4)] + [toy.frame(i, 'scene1') for i in range(2)]
    with opens(deployed.files(**options), threads=1, max_gap_s=None) as stepper:
        steps = [(stepper.step(frame), stepper.state) for frame in frames]
    for index, (frame, wanted) in enumerate(zip(frames, toy.eager(frames), strict=True)):
        result, state = steps[index]
        assert result.was_reset == (index in (0, 4))
        assert_close(result.outputs, wanted)
        np.testing.assert_allclose(result.detections.scores, wanted['scores'], rtol=0, atol=1e-3)
        local = to_local(wanted['state'], frame.ego_pose, frame.timestamp_s)
        for field, values in state.tensors.items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, local[field], rtol=0, atol=5e-3, err_msg=field)


@pytest.mark.matrix
@pytest.mark.parametrize('metres', [0.0, 700000.0])
@pytest.mark.parametrize('version', ['1.0', '1.1'])
def test_a_fork_file_keeps_a_millimetre_at_the_coordinates_of_a_map(version, metres):
    """The reference is the model in float64. Fed with map coordinates, the same file is 2 mm off or more."""
    frames = [toy.far(toy.frame(index), metres, 0.0) for index in range(8)]
    frames = [dataclasses.replace(one, ego_pose_inv=invert_pose(one.ego_pose)) for one in frames]
    wanted = [result['all_bbox_preds'][-1, 0, :, :3] for result in toy.eager(frames, dtype=torch.float64)]
    errors = {}
    for way in ('near', 'map'):
        with ForkOnnx(*deployed.files(contract='fork', fork_version=version), threads=1) as stepper:
            if way == 'map':
                stepper.origin = lambda pose: np.zeros(3)
            found = [stepper.step(frame).outputs['all_bbox_preds'][-1, 0, :, :3] for frame in frames]
        errors[way] = max(np.abs(one - two).max() for one, two in zip(found, wanted, strict=True))
    assert errors['near'] < 1e-3 < errors['map']


# ---- state and calibration


@pytest.mark.parametrize('second', ['deploy', 'fork'])
def test_another_runtime_continues_from_a_state_which_is_a_copy(runtime, second):
    opens, options = StreamPetrOnnx, {}
    if second == 'fork':
        opens, options = ForkOnnx, dict(contract='fork', fork_version='1.1', fork_img2lidar='depth')
    runtime.step(toy.frame(0))
    with opens(deployed.files(**options), threads=1) as other:
        state = other.state = runtime.state
        for values in (*state.tensors.values(), state.ego_pose):
            values += 1
        kept, continued = runtime.step(toy.frame(1)), other.step(toy.frame(1))
    assert not continued.was_reset
    assert_close(continued.outputs, kept.outputs)


def test_a_frame_without_a_scene_goes_on_in_the_last_one(runtime):
    scenes = 'scene0', None, 'scene0', None, 'scene1'
    frames = [toy.frame(index, scene) for index, scene in enumerate(scenes)]
    assert [runtime.step(frame).was_reset for frame in frames] == [True, False, False, False, True]


def test_the_position_embedding_follows_the_calibration(runtime):
    frames = [toy.frame(i) for i in range(2)]
    turned = frames[1].intrinsics.copy()
    turned[:, 0, 0] *= 1.25
    lidar2img = turned @ np.linalg.solve(frames[1].intrinsics, frames[1].lidar2img)
    frames[1] = dataclasses.replace(frames[1], intrinsics=turned, lidar2img=lidar2img)
    for frame in frames:
        found = runtime.step(frame).outputs
    assert_close(found, toy.eager(frames)[1])


# ---- resets


@pytest.mark.parametrize(
    'second', [dict(scene_token='other'), dict(timestamp_s=toy.frame(0).timestamp_s + 2.6)]
)
def test_a_new_scene_or_a_gap_empties_the_memory_and_says_so(runtime, caplog, second):
    after = dataclasses.replace(toy.frame(1), **second)
    with caplog.at_level(logging.INFO):
        runtime.step(toy.frame(0))
        result = runtime.step(after)
    assert result.was_reset and runtime.was_reset and 'memory reset' in caplog.text
    runtime.reset()
    alone = runtime.step(after)
    np.testing.assert_array_equal(alone.outputs['all_bbox_preds'], result.outputs['all_bbox_preds'])


# ---- refusals


def changed(name, place, value):
    array = np.array(getattr(toy.frame(1), name))
    array[place] = value
    return {name: array}


BAD = [
    (changed('ego_pose', (0, 3), np.nan), DataError, 'ego_pose'),
    (changed('lidar2img', (1, 0), 1.0), DataError, 'lidar2img of camera 1'),
    (dict(images=np.zeros((5, 3, HEIGHT, WIDTH), np.float32)), ShapeError, 'images'),
    (dict(timestamp_s=toy.frame(0).timestamp_s - 0.5), DataError, 'timestamp_s'),
]


@pytest.mark.parametrize(('second', 'error', 'key'), BAD, ids=range(len(BAD)))
def test_a_bad_frame_is_refused_and_leaves_the_memory_alone(runtime, second, error, key):
    runtime.step(toy.frame(0))
    before = runtime.state
    with pytest.raises(error, match=key):
        runtime.step(dataclasses.replace(toy.frame(1), **second))
    for field, values in before.tensors.items():
        np.testing.assert_array_equal(runtime.state.tensors[field], values)
    assert not runtime.step(toy.frame(1)).was_reset


def test_a_network_that_gives_nan_is_an_error_and_an_empty_memory(runtime):
    runtime.step(toy.frame(0))
    images = np.full((6, 3, HEIGHT, WIDTH), np.nan, np.float32)
    with pytest.raises(InferenceError):
        runtime.step(dataclasses.replace(toy.frame(1), images=images))
    again = runtime.step(toy.frame(1))
    assert again.was_reset and np.isfinite(again.outputs['all_cls_scores']).all()


@pytest.mark.parametrize(
    ('name', 'value'),
    [('timestamp', None), ('egopose', np.zeros((1, 2, 4, 4))), ('embedding', np.nan)],
)
def test_a_state_of_another_model_is_refused_by_its_tensor(runtime, name, value):
    runtime.step(toy.frame(0))
    state = runtime.state
    tensors = dict(state.tensors)
    old = tensors.pop(name)
    if value is not None:
        tensors[name] = np.full_like(old, value) if np.ndim(value) == 0 else value
    with pytest.raises(ShapeError, match=name):
        runtime.state = dataclasses.replace(state, tensors=tensors)
    assert not runtime.step(toy.frame(1)).was_reset


def test_graphs_of_other_cameras_and_folders_without_all_graphs_are_refused(tmp_path):
    files = deployed.files()
    with pytest.raises(ModelFileError, match=StreamPetrOnnx.files[-1]):
        StreamPetrOnnx(files[:1])
    copies = []
    for file in files:
        model = onnx.load(file)
        props = {entry.key: entry.value for entry in model.metadata_props}
        rule = json.loads(props['mm2onnx.preprocess'])
        rule.update(num_cameras=5, cameras=rule['cameras'][:5])
        onnx.helper.set_model_props(model, {**props, 'mm2onnx.preprocess': json.dumps(rule)})
        copies.append(tmp_path / Path(file).name)
        onnx.save(model, copies[-1])
    with pytest.raises(ModelFileError, match='graph expects'):
        StreamPetrOnnx(copies)
