"""Scenes stay whole: every frame exactly once, in order within its scene, whatever the number of ranks."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdeploy_ext.base.distributed import shard_scenes
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.evaluate.loop import collect


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


def test_work_is_balanced_by_frames_not_by_scenes():
    tokens = ['long'] * 6 + ['x'] * 2 + ['y'] * 2 + ['z'] * 2
    assert [len(shard_scenes(tokens, rank, 2)) for rank in range(2)] == [6, 6]


@pytest.mark.parametrize('other', [{1: 'b', 2: 'c', 0: 'again'}, {1: 'b'}])
def test_a_sample_that_ran_twice_or_never_is_refused(other):
    def ranks(part):
        return types.SimpleNamespace(size=2, to_first=lambda results, _: [results, part])

    assert collect({0: 'a'}, 3, ranks({2: 'c', 1: 'b'})) == ['a', 'b', 'c']
    with pytest.raises(DataError, match='samples'):
        collect({0: 'a'}, 3, ranks(other))
