"""The memory: one mathematics for the global and the local state, exact resets, no rows beyond its length."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mm2onnx_driving.streampetr import steps as temporal
from mm2onnx_driving.streampetr.memory import to_global, to_local
from mm2onnx_driving.streampetr.steps import Memory

LEN, NEW, CHANNELS = 6, 3, 4
PSEUDO = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
ONE, ZERO = torch.ones(1), torch.zeros(1)


def random_rows(count, seed, batch=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(batch, count, *shape, dtype=torch.float64, generator=generator)

    return Memory(normal(CHANNELS), 20 * normal(3), normal(1).abs(), normal(4, 4), normal(2))


def pose(yaw, x, y):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0] = matrix[1, 1] = math.cos(yaw)
    matrix[1, 0], matrix[0, 1] = math.sin(yaw), -math.sin(yaw)
    matrix[0, 3], matrix[1, 3] = x, y
    return matrix.unsqueeze(0)


def assert_equal(left, right, atol=0.0):
    for name, a, b in zip(Memory._fields, left, right, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, msg=lambda text, name=name: f'{name}: {text}')


def slow_move(memory, transform, delta_t):
    """Move row by row."""
    out = [rows.clone() for rows in memory]
    for b in range(len(delta_t)):
        for i in range(memory.embedding.shape[1]):
            point = torch.cat([memory.reference_point[b, i], torch.ones(1, dtype=torch.float64)])
            out[1][b, i] = (transform[b] @ point)[:3]
            out[2][b, i] = memory.timestamp[b, i] + delta_t[b]
            out[3][b, i] = transform[b] @ memory.egopose[b, i]
    return Memory(*out)


def test_move_equals_moving_row_by_row_with_one_pose_per_sample():
    memory = random_rows(5, 0, batch=2)
    transform = torch.cat([pose(0.3, 10, -2), pose(-1.0, 3, 4)])
    delta_t = torch.tensor([0.5, 7.0], dtype=torch.float64)
    assert_equal(temporal.move(memory, transform, delta_t), slow_move(memory, transform, delta_t), 1e-12)


def test_push_puts_the_new_rows_first_and_keeps_the_dtype_of_the_times():
    old, new = random_rows(LEN, 2), random_rows(NEW, 3)
    new = new._replace(timestamp=new.timestamp.float())
    pushed = temporal.push(old, new)
    assert pushed.embedding.shape[1] == LEN + NEW
    assert pushed.timestamp.dtype == torch.float64
    assert torch.equal(pushed.embedding[:, :NEW], new.embedding)
    assert torch.equal(pushed.velo[:, NEW:], old.velo)


def test_a_new_scene_starts_with_pseudo_points_identity_poses_and_zeros():
    fresh = temporal.pre_update(random_rows(LEN + NEW, 5), pose(1, 2, 3), torch.ones(1), ZERO, PSEUDO, LEN)
    expected = [torch.zeros_like(rows) for rows in fresh]
    expected[1][0, :2] = PSEUDO
    expected[3][0, :2] = torch.eye(4)
    assert_equal(fresh, expected)


@pytest.mark.parametrize('value', [math.nan, math.inf, 3e38])
def test_nothing_of_a_stale_state_survives_a_reset(value):
    stale = Memory(*(torch.full_like(rows, value) for rows in random_rows(LEN + NEW, 6)))
    start = temporal.empty(1, LEN, CHANNELS, dtype=torch.float64)
    used = [
        temporal.pre_update(old, pose(1, 2, 3), torch.ones(1), ZERO, PSEUDO, LEN) for old in (stale, start)
    ]
    assert_equal(*used)


def test_absolute_times_keep_microseconds():
    state = random_rows(LEN, 8)
    now = torch.tensor([1.6e9 + 1e-6], dtype=torch.float64)
    state = state._replace(timestamp=torch.full_like(state.timestamp, -1.6e9))
    age = temporal.pre_update(state, pose(0, 0, 0), now, ONE, PSEUDO, LEN).timestamp
    torch.testing.assert_close(age, torch.full_like(age, 1e-6), atol=3e-7, rtol=0)


def test_ages_survive_absolute_times_of_years():
    rows = {name: values.float().numpy() for name, values in random_rows(LEN, 9)._asdict().items()}
    moved = pose(0.3, 50, -20)[0].numpy()
    there = to_global(rows, moved, 1.5e9)
    assert there['timestamp'].dtype == np.float64
    for name, values in to_local(there, moved, 1.5e9).items():
        np.testing.assert_allclose(values, rows[name], atol=1e-4, rtol=0, err_msg=name)


steps = st.tuples(st.floats(-3, 3), st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 2), st.booleans())


@settings(max_examples=30, deadline=None)
@given(drive=st.lists(steps, min_size=1, max_size=8), offset=st.floats(-1e3, 1e3))
def test_the_local_state_is_the_global_state_seen_from_the_car(drive, offset):
    world, now = pose(0.4, offset, -offset), 1.5e9
    global_state = temporal.empty(1, LEN, CHANNELS, dtype=torch.float64)
    local_state, first = global_state, True
    for index, (yaw, x, y, delta, exists) in enumerate(drive):
        motion = pose(yaw, x, y)
        previous, world, now = world, world @ motion, now + delta
        inverse = torch.linalg.inv(world)
        exists = ONE * (exists and not first)
        time = torch.tensor([now], dtype=torch.float64)
        seen = temporal.pre_update(global_state, inverse, time, exists, PSEUDO, LEN)
        ego_motion, age = inverse @ previous, torch.tensor([delta], dtype=torch.float64)
        used = temporal.pre_update(local_state, ego_motion, age, exists, PSEUDO, LEN)
        assert_equal(used, seen, 1e-6)
        new = random_rows(NEW, index)
        local_state = temporal.push(used, new)
        global_state = temporal.move(temporal.push(seen, new), world, -time)
        first = False
