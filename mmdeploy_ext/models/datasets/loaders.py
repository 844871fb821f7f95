"""Data loaders whose samplers a config names, and the samplers of sequences under StreamPETR's names."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmcv.parallel import collate
from mmcv.runner import get_dist_info
from mmcv.utils import Registry
from mmdet.datasets.builder import worker_init_fn
from mmdet.datasets.samplers import DistributedGroupSampler
from torch.utils.data import DataLoader, Sampler

from mmdeploy_ext.core.distributed import shard_scenes

SAMPLER = Registry('sampler')
"""Samplers for `data.shuffler_sampler` and `data.nonshuffler_sampler` of a config."""
SAMPLER.register_module(module=DistributedGroupSampler)


@SAMPLER.register_module()
class DistributedSampler(Sampler):
    """Gives each rank one run of consecutive frames; the last ranks repeat the first frames to fill up.

    A run may begin inside a scene, without the memory of the frames before; see `SceneSampler`.
    `num_replicas` is the number of ranks, `rank` this one; `shuffle` has to be False (else ValueError),
    `seed` is not used.

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

    The data set has `data_infos` with scene tokens. `num_replicas` is the number of ranks, `rank` this one;
    `shuffle` has to be False (else ValueError), `seed` is not used.
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
    `num_replicas` is the number of ranks, `rank` this one. The data set's `flag` (frames,) is the sequence of
    each frame; the seed is the same on all ranks, None is 0. The sampler's length is the number of the data
    set's frames, whatever the size of a batch. ValueError: there are fewer sequences than P.

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
        def permutations() -> Iterator[int]:
            generator = torch.Generator()
            generator.manual_seed(self.seed)
            while True:
                yield from torch.randperm(len(self.groups), generator=generator).tolist()

        def stream(position: int) -> Iterator[int]:
            for group in itertools.islice(permutations(), position, None, self.positions):
                yield from self.groups[group]

        yield from map(list, zip(*(stream(position) for position in self.local), strict=True))

    def __len__(self) -> int:
        return self.frames

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""


def build_dataloader(
    dataset: Any,
    samples_per_gpu: int,
    workers_per_gpu: int,
    num_gpus: int = 1,
    dist: bool = True,
    shuffle: bool = True,
    seed: int | None = None,
    runner_type: str | None = None,
    shuffler_sampler: dict[str, Any] | None = None,
    nonshuffler_sampler: dict[str, Any] | None = None,
    **kwargs: Any,
) -> DataLoader:
    """Build a loader as mmdet's `build_dataloader` does, with the samplers of a StreamPETR config.

    A loader process, of which there are `workers_per_gpu`, makes batches of `samples_per_gpu` samples.
    `shuffle` chooses between the two samplers: of training, whose data set has `flag`, and of tests. The seed
    is that of the training order and the loaders' augmentation. `num_gpus` and `runner_type` are not used:
    one process has one device, and the sampler says whether it gives batches. `dist` says whether samples are
    shared among the ranks; the two samplers are configs of the registry of samplers, None for mmdet's
    `DistributedGroupSampler` and for `DistributedSampler`. `kwargs` are those of PyTorch's `DataLoader`.
    """
    rank, world_size = get_dist_info() if dist else (0, 1)
    shared = dict(dataset=dataset, num_replicas=world_size, rank=rank, seed=seed)
    if shuffle:
        sampler = SAMPLER.build(
            dict(shuffler_sampler or dict(type='DistributedGroupSampler')),
            default_args=dict(shared, samples_per_gpu=samples_per_gpu),
        )
    else:
        sampler = SAMPLER.build(
            dict(nonshuffler_sampler or dict(type='DistributedSampler')),
            default_args=dict(shared, shuffle=False),
        )
    if isinstance(sampler, InfiniteGroupEachSampleInBatchSampler):
        sampling = dict(batch_sampler=sampler)
    else:
        sampling = dict(batch_size=samples_per_gpu, sampler=sampler)
    if workers_per_gpu == 0:
        kwargs.pop('persistent_workers', None)
    if seed is not None:
        kwargs['worker_init_fn'] = partial(worker_init_fn, num_workers=workers_per_gpu, rank=rank, seed=seed)
    return DataLoader(
        dataset,
        **sampling,
        num_workers=workers_per_gpu,
        collate_fn=partial(collate, samples_per_gpu=samples_per_gpu),
        **kwargs,
    )
