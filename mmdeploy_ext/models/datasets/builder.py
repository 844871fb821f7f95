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

    `shuffle` chooses between the two samplers: of training, whose data set has `flag`, and of tests. The seed
    is that of the training order and the loaders' augmentation. `num_gpus` and `runner_type` are not used:
    one process has one device, and the sampler says whether it gives batches.
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
