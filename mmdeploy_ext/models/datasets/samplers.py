"""Samplers for sequences, under StreamPETR's names."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmcv.utils import Registry
from mmdet.datasets.samplers import DistributedGroupSampler
from torch.utils.data import Sampler

from mmdeploy_ext.evaluate.loop import shard_scenes

SAMPLER = Registry('sampler')
"""That `data.shuffler_sampler` and `data.nonshuffler_sampler` of a config name."""
SAMPLER.register_module(module=DistributedGroupSampler)


@SAMPLER.register_module()
class DistributedSampler(Sampler):
    """Gives each rank one run of consecutive frames; the last ranks repeat the first frames to fill up.

    A run may begin inside a scene, where the memory is then missing: see `SceneSampler`.

    Source: exiawsh/StreamPETR 95f6470, datasets/samplers/distributed_sampler.py.
    """

    def __init__(
        self, dataset: Any, num_replicas: int = 1, rank: int = 0, shuffle: bool = False, seed: int | None = 0
    ) -> None:
        if shuffle:
            raise ValueError(
                'DistributedSampler: got shuffle=True, expected False: frames are streamed in order'
            )
        self.frames, self.rank = len(dataset), rank
        self.share = math.ceil(self.frames / num_replicas)

    def __iter__(self) -> Iterator[int]:
        first = self.rank * self.share
        return iter([i % self.frames for i in range(first, first + self.share)])

    def __len__(self) -> int:
        return self.share


@SAMPLER.register_module()
class SceneSampler(Sampler):
    """Gives this rank whole scenes, frame by frame; ranks may have different numbers of frames.

    mmdet collects results by interleaving ranks: with this sampler they must be put back by sample index
    (`indices` has those of this rank, in the order in which they are given). Scenes are never shuffled.
    """

    def __init__(
        self, dataset: Any, num_replicas: int = 1, rank: int = 0, shuffle: bool = False, seed: int | None = 0
    ) -> None:
        if shuffle:
            raise ValueError('SceneSampler: got shuffle=True, expected False: scenes are streamed in order')
        tokens = [info['scene_token'] for info in dataset.data_infos]
        self.indices = shard_scenes(tokens, rank, num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


@SAMPLER.register_module()
class InfiniteGroupEachSampleInBatchSampler(Sampler):
    """Endless batches in which every position streams through sequences of its own, frame by frame.

    Position p of all P = samples_per_gpu * num_replicas takes sequences p, p + P, p + 2P, ... of an endless
    chain of seeded permutations of the sequences, so no two positions share a sequence of one permutation.
    The data set's `flag` (frames,) is the sequence of each frame; the seed is the same on all ranks.

    Source: exiawsh/StreamPETR 95f6470, datasets/samplers/group_sampler.py.
    """

    def __init__(
        self,
        dataset: Any,
        samples_per_gpu: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int | None = 0,
    ) -> None:
        flags = np.asarray(dataset.flag)
        self.groups = [np.flatnonzero(flags == group).tolist() for group in np.unique(flags)]
        self.positions = samples_per_gpu * num_replicas
        if len(self.groups) < self.positions:
            raise ValueError(
                f'got {len(self.groups)} sequences, expected at least {self.positions} '
                f'({samples_per_gpu} samples x {num_replicas} processes): take a smaller '
                f'samples_per_gpu or a larger seq_split_num'
            )
        self.local = range(rank * samples_per_gpu, (rank + 1) * samples_per_gpu)
        self.seed, self.frames = seed or 0, len(flags)

    def __iter__(self) -> Iterator[list[int]]:
        yield from map(list, zip(*(self._stream(position) for position in self.local), strict=True))

    def _stream(self, position: int) -> Iterator[int]:
        for group in itertools.islice(self._permutations(), position, None, self.positions):
            yield from self.groups[group]

    def _permutations(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.groups), generator=generator).tolist()

    def __len__(self) -> int:
        return self.frames

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""
