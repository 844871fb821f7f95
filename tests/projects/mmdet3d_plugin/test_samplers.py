"""Samplers: who gets which frames, and in what order."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.core.distributed import shard_scenes
from mmdeploy_ext.models.datasets.loaders import (
    SAMPLER,
    InfiniteGroupEachSampleInBatchSampler,
)
from mmdeploy_ext.models.datasets.nuscenes_dataset import scene_lengths, sequence_flags

SCENES = ['a'] * 5 + ['b'] * 2 + ['c'] * 7 + ['d'] * 4


def dataset(flags=(), tokens=SCENES):
    infos = [dict(scene_token=token) for token in tokens]
    return SimpleNamespace(flag=np.array(flags), data_infos=infos, __len__=lambda: len(infos))


class Frames(list):
    """A data set that has a length and nothing else."""


def batches(flags, count, **options):
    return list(itertools.islice(InfiniteGroupEachSampleInBatchSampler(dataset(flags), **options), count))


def test_a_scene_is_cut_into_runs_of_equal_length():
    assert sequence_flags(SCENES, 1).tolist() == [0] * 5 + [1] * 2 + [2] * 7 + [3] * 4
    halves = [0] * 3 + [1] * 2 + [2, 3] + [4] * 4 + [5] * 3 + [6] * 2 + [7] * 2
    assert sequence_flags(SCENES, 2).tolist() == halves
    assert sequence_flags(SCENES, 'all').tolist() == list(range(len(SCENES)))


def test_a_scene_token_that_comes_back_begins_a_new_sequence():
    assert sequence_flags(['a', 'b', 'a']).tolist() == [0, 1, 2] and scene_lengths([]) == []


def test_every_position_streams_through_whole_sequences_in_order():
    flags = sequence_flags(SCENES, 2)
    for stream in zip(*batches(flags, 40, samples_per_gpu=2, seed=3), strict=True):
        runs = [list(run) for _, run in itertools.groupby(stream, key=lambda i: flags[i])]
        assert len(runs) > 10
        for run in runs[:-1]:  # the last one was cut off by the test
            assert np.array_equal(run, np.tile(np.flatnonzero(flags == flags[run[0]]), 2)[:len(run)])


def test_positions_of_all_ranks_take_turns_in_one_permutation():
    flags = list(range(8))  # sequences of one frame: each batch is the next part of the permutation
    one = batches(flags, 4, samples_per_gpu=4, seed=1)
    ranks = [batches(flags, 4, samples_per_gpu=2, num_replicas=2, rank=rank, seed=1) for rank in (0, 1)]
    assert one == [left + right for left, right in zip(*ranks, strict=True)]
    assert sorted(one[0] + one[1]) == flags and sorted(one[2] + one[3]) == flags


def test_too_few_sequences_for_the_batch_are_refused():
    with pytest.raises(ValueError, match=r'2.*4 \(2.*2 processes\)'):
        InfiniteGroupEachSampleInBatchSampler(dataset([0, 1]), samples_per_gpu=2, num_replicas=2)


@pytest.mark.parametrize(('rank', 'expected'), [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 0, 1])])
def test_the_distributed_sampler_gives_consecutive_frames(rank, expected):
    options = dict(dataset=Frames(range(7)), num_replicas=3, rank=rank, shuffle=False)
    sampler = SAMPLER.build(dict(type='DistributedSampler'), default_args=options)
    assert list(sampler) == expected and len(sampler) == 3


def test_the_scene_sampler_gives_the_shard_of_its_rank():
    options = dict(dataset=dataset(), num_replicas=2, shuffle=False, seed=None)
    shards = [SAMPLER.build(dict(type='SceneSampler', rank=rank), default_args=options) for rank in (0, 1)]
    assert [list(sampler) for sampler in shards] == [shard_scenes(SCENES, rank, 2) for rank in (0, 1)]
    assert len(shards[0]) == len(shards[1]) == 9


@pytest.mark.parametrize('name', ['DistributedSampler', 'SceneSampler'])
def test_streams_are_not_shuffled(name):
    with pytest.raises(ValueError, match=f'{name}'):
        SAMPLER.build(dict(type=name, dataset=dataset(), shuffle=True))


def test_upstreams_names_are_registered():
    names = {'DistributedGroupSampler', 'DistributedSampler', 'InfiniteGroupEachSampleInBatchSampler'}
    assert names <= set(SAMPLER.module_dict)
