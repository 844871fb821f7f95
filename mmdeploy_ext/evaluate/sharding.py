"""Which frames each process runs: scenes stay whole, because the memory runs from frame to frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def shard_scenes(scene_tokens: Sequence[str], rank: int, world_size: int) -> list[int]:
    """Return the sample indices of one process, scene after scene, each scene in data-set order.

    Scenes go, longest first, to the process that has the fewest frames; every process computes the same plan.

    Args:
        scene_tokens: of each sample, in data-set order.
        rank: of the process.
        world_size: number of processes; there may be more of them than scenes.
    """
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(scene_tokens):
        scenes.setdefault(token, []).append(index)
    shards: list[list[list[int]]] = [[] for _ in range(world_size)]
    for frames in sorted(scenes.values(), key=lambda frames: (-len(frames), frames[0])):
        min(shards, key=lambda shard: sum(map(len, shard))).append(frames)
    return [index for frames in sorted(shards[rank]) for index in frames]
