"""Damaged pictures, drawn with a seed: cut, with other bytes, other headers, or another end."""

import random
import struct
from pathlib import Path

import cv2

OPTIONS = {
    '.jpg': [
        [],
        [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
        [cv2.IMWRITE_JPEG_QUALITY, 40],
    ],
    '.png': [[], [cv2.IMWRITE_PNG_COMPRESSION, 0]],
    '.bmp': [[]],
    '.webp': [[], [cv2.IMWRITE_WEBP_QUALITY, 101]],
    '.tiff': [[], [cv2.IMWRITE_TIFF_COMPRESSION, 1]],
}
LARGE = (0, 1, 20_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)


def pictures(source: Path, count: int, seed: int):
    """Yield `count` times an ending and a damaged picture."""
    rng, picture = random.Random(seed), cv2.resize(cv2.imread(str(source)), (240, 180))
    right = [
        (ending, cv2.imencode(ending, picture, options)[1].tobytes())
        for ending, several in OPTIONS.items()
        for options in several
    ]
    for number in range(count):
        ending, content = right[number % len(right)]
        yield ending, bytes(damaged(bytearray(content), rng))


def damaged(content: bytearray, rng: random.Random) -> bytearray:
    """Return content with one kind of damage."""
    kind, place = rng.randrange(8), rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        for _ in range(rng.choice([1, 3, 30])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        content[place : place + rng.choice([1, 8, 400])] = rng.randbytes(rng.choice([1, 8, 400]))
    elif kind == 3:
        del content[place : place + rng.choice([1, 30, 2000])]
    elif kind == 4:  # the header, with what sizes are at most
        place = rng.randrange(min(200, len(content) - 4))
        content[place : place + 4] = struct.pack(rng.choice('<>') + 'I', rng.choice(LARGE))
    elif kind == 5:
        content[place:place] = content[: rng.randrange(len(content))]
    elif kind == 6:
        content[place : place + 400] = bytes(400)
    else:
        return content[: rng.randrange(100)] + bytearray(rng.randbytes(rng.randrange(4000)))
    return content
