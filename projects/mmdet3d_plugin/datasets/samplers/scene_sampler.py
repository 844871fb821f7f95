"""Whole scenes to ranks, for tests with a memory on more than one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from .registry import SAMPLER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def scene_shards(scene_tokens: Sequence[str], num_replicas: int) -> list[list[int]]:
    """Give whole scenes to ranks: the longest scene first, to the rank that has the fewest frames.

    Args:
        scene_tokens: the scene of each frame, in order of time within a scene.
        num_replicas: number of ranks.

    Returns:
        The frame indices of each rank: every frame once, scenes whole and in time order, scenes sorted
        by their first frames. A rank is empty where there are fewer scenes than ranks; otherwise
        two ranks differ by at most the frames of one scene.
    """
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(scene_tokens):
        scenes.setdefault(token, []).append(index)
    shards: list[list[list[int]]] = [[] for _ in range(num_replicas)]
    for frames in sorted(scenes.values(), key=len, reverse=True):
        min(shards, key=lambda shard: sum(map(len, shard))).append(frames)
    return [[index for frames in sorted(shard) for index in frames] for shard in shards]


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

    def __init__(self, dataset: Any, num_replicas: int = 1, rank: int = 0, shuffle: bool = False,
                 seed: int | None = 0) -> None:
        if shuffle:
            raise ValueError('SceneSampler: got shuffle=True, expected False: scenes are streamed in order')
        tokens = [info['scene_token'] for info in dataset.data_infos]
        self.indices = scene_shards(tokens, num_replicas)[rank]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
