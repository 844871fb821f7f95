"""Infos of a data set with damage, drawn with a seed: values that none has, and bytes that changed."""

import copy
import random
import struct

import numpy as np

VALUES = [
    *(None, True, 0, -1, 10**400, 2**64, -3.5, 1e-300, 1e30, 1e300, float('nan'), -float('inf'), 1j),
    *('', 'x', '\0', '\ud800', '\x1b[31m', '../' * 9, 'x' * 5000, b'', b'\xff', bytearray(b'x')),
    *([], [0], [1, 2, 3], [1, 2, 3, 4], [0, 0, 0, 0], [[]], [[1], [1, 2]], ['a'] * 3, [None] * 3, (), {}),
    *({'x': 1}, {1: 2}, {(1, 2): 3}, {1, 2}, np.zeros(0), np.zeros((3, 3)), np.eye(3) * 1e200),
    *(
        np.ones(3) * 1e38,
        np.full((3, 3), np.nan),
        np.array(['a', 'b', 'c']),
        np.array([None, []], object),
        np.eye(4),
    ),
    *(np.float32(1), np.diag([1.0, 1.0, -1.0]), np.zeros(3, complex), np.zeros((3, 0)), -np.eye(3)),
]


def places(value, path=()):
    """Yield the path of a value and of all below it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed_values(content, count, seed):
    """Yield `count` times a number and infos in which one value, two or three are others, or gone."""
    rng = random.Random(seed)
    paths = [path for path in places(content) if path]
    for number in range(count):
        changed = copy.deepcopy(content)
        for path in rng.sample(paths, rng.choice([1, 1, 2, 3])):
            _change(changed, path, rng)
        yield number, changed if rng.random() > 0.03 else rng.choice(VALUES)


def _change(value, path, rng):
    """Change what is at a path, where an earlier change has left it."""
    for key in path[:-1]:
        if not _has(value, key):
            return
        value = value[key]
    key = path[-1]
    if _has(value, key):
        if rng.random() < 0.25:
            del value[key]
        else:
            value[key] = rng.choice(VALUES)


def _has(value, key):
    return (
        key in value
        if isinstance(value, dict)
        else isinstance(value, list) and isinstance(key, int) and key < len(value)
    )


def changed_bytes(contents, count, seed):
    """Yield `count` times one of some contents with a few bytes changed, cut or put in."""
    rng = random.Random(seed)
    for number in range(count):
        content = bytearray(contents[number % len(contents)])
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            place = rng.randrange(len(content))
            kind = rng.randrange(6)
            if kind == 0:
                content[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                content[place] = rng.randrange(256)
            elif kind == 2:
                del content[place : place + rng.choice([1, 4, 100])]
            elif kind == 3:
                content[place:place] = rng.randbytes(rng.choice([1, 4, 9]))
            elif kind == 4:
                content[place : place + 4] = struct.pack('<I', rng.choice([0, 2**27, 2**31 - 1, 2**32 - 1]))
            else:
                content = content[: max(place, 1)]
            content = content or bytearray(b'.')
        yield bytes(content)
