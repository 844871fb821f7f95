"""Batches for streaming training."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from .registry import SAMPLER


@SAMPLER.register_module()
class InfiniteGroupEachSampleInBatchSampler(Sampler):
    """Endless batches in which every position streams through sequences of its own, frame by frame.

    Position p of all P = samples_per_gpu * num_replicas takes sequences p, p + P, p + 2P, ... of an endless
    chain of seeded permutations of the sequences, so no two positions share a sequence of one permutation.

    Args:
        dataset: has `flag` (frames,), the sequence of each frame.
        samples_per_gpu: positions (batch size) of this rank.
        num_replicas: ranks.
        rank: of this process.
        seed: the same on all ranks.

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
