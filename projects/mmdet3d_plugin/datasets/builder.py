"""Data loaders whose samplers a config names."""

from functools import partial
from typing import Any

from mmcv.parallel import collate
from mmcv.runner import get_dist_info
from mmdet.datasets.builder import worker_init_fn
from torch.utils.data import DataLoader

from .samplers import SAMPLER, InfiniteGroupEachSampleInBatchSampler


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

    Args:
        dataset: a training data set has `flag`.
        samples_per_gpu: batch size of this process.
        workers_per_gpu: loader processes of this process.
        num_gpus: not used: one process has one device.
        dist: more than one process; otherwise the samplers see one.
        shuffle: training; chooses between the two samplers.
        seed: of the training order and the loaders' augmentation.
        runner_type: not used: the sampler says whether it gives batches.
        shuffler_sampler: of training, default `DistributedGroupSampler`.
        nonshuffler_sampler: of tests, default `DistributedSampler`.
        kwargs: of torch's `DataLoader`.
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
