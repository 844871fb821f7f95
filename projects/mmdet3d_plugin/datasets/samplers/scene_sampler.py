"""Whole scenes to ranks, for tests with a memory on more than one process."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from mmdeploy_ext.evaluate.loop import shard_scenes

from .registry import SAMPLER


@SAMPLER.register_module()
class SceneSampler(Sampler):
    """Gives this rank whole scenes, frame by frame; ranks may have different numbers of frames.

    mmdet collects results by interleaving ranks: with this sampler they must be put back by sample index
    (`indices` has those of this rank, in the order in which they are given).

    Args:
        dataset: has `data_infos` with `scene_token`.
        num_replicas: ranks.
        rank: of this process.
        shuffle, seed: of the builder's interface; scenes are never shuffled.
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
