"""The two samplers for windows of frames that StreamPETR's configs name."""

import math
from collections.abc import Iterator
from typing import Any

from mmdet.datasets.samplers import DistributedGroupSampler as MmdetGroupSampler
from torch.utils.data import Sampler

from .registry import SAMPLER

SAMPLER.register_module(name='DistributedGroupSampler', module=MmdetGroupSampler)
DistributedGroupSampler = MmdetGroupSampler


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
