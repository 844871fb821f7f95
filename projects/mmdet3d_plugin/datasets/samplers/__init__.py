"""Samplers for sequences, under StreamPETR's names."""

from .distributed_sampler import DistributedGroupSampler, DistributedSampler
from .registry import SAMPLER
from .scene_sampler import SceneSampler
from .sequence_sampler import InfiniteGroupEachSampleInBatchSampler

__all__ = [
    'SAMPLER',
    'DistributedGroupSampler',
    'DistributedSampler',
    'InfiniteGroupEachSampleInBatchSampler',
    'SceneSampler',
]
