"""Ranges and voxel sizes that a config states at several places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RANGES, SIZES = ('point_cloud_range', 'pc_range'), ('voxel_size',)
TRAINING = 'train_cfg'


def disagreements(cfg: Any) -> list[str]:
    """Sentences about a range, or a voxel size, of the model that differs from the one of its voxels."""
    stated = [*_stated(cfg.model, 'model')]
    found = []
    for names in (RANGES, SIZES):
        places = {key: values for key, values in stated if key.rpartition('.')[2] in names}
        first = next((key for key in places if 'voxel_layer' in key or 'voxelize' in key), None)
        if first is None:
            continue
        found += [
            f'{key} {list(values)} is not {first} {list(places[first])}: boxes would be off by the difference'
            for key, values in places.items()
            if not _agree(values, places[first])
        ]
    return found


def _stated(part: Any, key: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    if not isinstance(part, Mapping):
        for index, entry in enumerate(part) if isinstance(part, list | tuple) else ():
            yield from _stated(entry, f'{key}.{index}')
        return
    for name, value in part.items():
        if name == TRAINING:
            continue
        is_numbers = isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value)
        if name in (*RANGES, *SIZES) and is_numbers:
            yield f'{key}.{name}', tuple(value)
        else:
            yield from _stated(value, f'{key}.{name}')


def _agree(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Compare x and y: coders state no z, or that of the whole height."""
    if len(one) == len(other) == 6:
        one, other = (one[0], one[1], one[3], one[4]), (other[0], other[1], other[3], other[4])
    return one[:2] == other[:2] and (len(one) < 4 or len(other) < 4 or one[2:4] == other[2:4])
