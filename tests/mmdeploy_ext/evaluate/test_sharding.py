"""Scenes stay whole: every frame exactly once, in order within its scene, whatever the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.evaluate import loop
from mmdeploy_ext.evaluate.loop import shard_scenes


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    world_size=st.integers(1, 5),
)
def test_every_frame_is_run_once_and_no_scene_is_split(lengths, world_size):
    tokens = [f'scene-{scene}' for scene, length in enumerate(lengths) for _ in range(length)]
    shards = [shard_scenes(tokens, rank, world_size) for rank in range(world_size)]

    assert sorted(index for shard in shards for index in shard) == list(range(len(tokens)))
    owners = [{tokens[index] for index in shard} for shard in shards]
    assert all(not one & other for i, one in enumerate(owners) for other in owners[:i])
    assert all(shard == sorted(shard) for shard in shards)


def test_interleaved_scenes_are_put_back_together():
    assert shard_scenes(['a', 'b', 'a', 'b'], 0, 1) == [0, 2, 1, 3]


def test_work_is_balanced_by_frames_not_by_scenes():
    tokens = ['long'] * 6 + ['x'] * 2 + ['y'] * 2 + ['z'] * 2
    assert [len(shard_scenes(tokens, rank, 2)) for rank in range(2)] == [6, 6]


def test_the_validation_scenes_of_nuscenes_spread_evenly():
    lengths = np.random.default_rng(0).integers(20, 41, 150)
    tokens = [str(scene) for scene, length in enumerate(lengths) for _ in range(length)]
    sizes = [len(shard_scenes(tokens, rank, 8)) for rank in range(8)]
    assert max(sizes) - min(sizes) <= 40


def test_more_processes_than_scenes_leave_some_idle():
    assert [shard_scenes(['a', 'a'], rank, 3) for rank in range(3)] == [[0, 1], [], []]


@pytest.mark.parametrize('wrap', [lambda boxes: boxes, lambda boxes: (boxes, [])])
def test_boxes_that_are_nan_are_not_evaluated(wrap):
    boxes = [np.ones((2, 5), np.float32), np.zeros((0, 5), np.float32)]
    loop._refuse_nan(3, wrap(boxes))
    loop._refuse_nan(3, dict(boxes_3d=None))
    boxes[0][1, 2] = np.nan
    with pytest.raises(DataError, match=r'^sample 3: the model gave boxes'):
        loop._refuse_nan(3, wrap(boxes))
