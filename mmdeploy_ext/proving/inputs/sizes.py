"""The input sizes of a dynamic graph in a proof, from its contract and the size that it was traced at."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.families.model import Model

STRIDE = 32
"""Pixels. The pipelines of most configs pad to it; an odd multiple of it is no multiple of 64 or 128."""
LONG = 640
"""Pixels. The size at which most models are traced: one input of a proof is wider and one is higher."""
NARROW = 224
"""Pixels. About the short side of these two inputs, for speed."""
SMALL = 320
"""Pixels. About the longest side of the sizes that only have to differ from the traced one, if the graph
takes them."""
LARGEST = 1_000_000
"""Pixels, height times width. `InputSizes.larger` is None if it would have more."""
Size = tuple[int, int]
"""Height and width, pixels."""


@dataclasses.dataclass(frozen=True)
class InputSizes:
    """Sizes (H, W) of a dynamic graph's inputs, pixels.

    Attributes:
        landscape: about as large as `unaligned`, H an odd multiple of `step`, W larger.
        portrait: about as large as `unaligned`, H larger than W and an odd multiple of `step`; an even one
            where the aligned `unaligned` is a square.
        wide: W more than twice H, if the graph takes one so low; W is over `LONG` and over the traced W.
        tall: H more than twice W, if the graph takes one so narrow; H is over `LONG` and over the traced H.
        unaligned: the size before padding, rarely a multiple of `STRIDE`; smaller than the traced one, or, if
            the graph takes none so small, larger.
        fine: `unaligned` rounded down to multiples that the graph takes, and not padded; None if these are
            multiples of `STRIDE`, or the size is too small.
        larger: than the traced size on both sides, or None, see `LARGEST`.
        step: px; `unaligned` is padded to multiples of it. It is the least common multiple of `STRIDE` and of
            the number of which the graph takes multiples.
    """

    landscape: Size
    portrait: Size
    wide: Size
    tall: Size
    unaligned: Size
    fine: Size | None
    larger: Size | None
    step: int = STRIDE


def other_sizes(deployment: Model, options: Options) -> InputSizes:
    """Return the sizes for a file with these options, which are sizes that it takes, see `ImageFamily.takes`.

    `unaligned` is one when it is padded. A graph that takes none that is near is given one it does not take.
    """
    image = deployment.family.picture(deployment.model, options)
    takes = functools.partial(deployment.family.takes, deployment.model, options)
    step = math.lcm(STRIDE, image.multiple)
    height, width = options.height, options.width
    shrink = min(0.75, SMALL / max(height, width))
    unaligned = int(height * shrink) - 7, int(width * shrink) + 5
    if not takes(*_aligned(unaligned, step)):
        unaligned = int(height * 1.75) - 7, int(width * 1.5) + 5
    short, long = sorted(_aligned(unaligned, step))
    larger = tuple(
        max(int(side * factor) // step, side // step + 1) * step
        for side, factor in ((height, 1.25), (width, 1.125))
    )
    fine = tuple(size // image.multiple * image.multiple for size in unaligned)
    return InputSizes(
        landscape=_grown((_odd(short, step), max(long, _odd(short, step) + step)), 2 * step, takes),
        portrait=_grown((_odd(long, step) + step * (long == short), short), 2 * step, takes),
        wide=_grown((_odd(NARROW, step), _odd(_beyond(width), step)), 2 * step, takes),
        tall=_grown((_odd(_beyond(height), step), _odd(NARROW, step) - step), 2 * step, takes),
        unaligned=unaligned,
        fine=fine if image.multiple < STRIDE and takes(*fine) else None,
        larger=larger if larger[0] * larger[1] <= LARGEST and takes(*larger) else None,
        step=step,
    )


def fits(deployment: Model, options: Options, size: Size) -> bool:
    """Return whether a dynamic file with these options takes an input of a size."""
    image = deployment.family.picture(deployment.model, options)
    aligned = not any(side % image.multiple for side in size)
    return aligned and deployment.family.takes(deployment.model, options, *size)


def _beyond(traced: int) -> int:
    return max(int(traced * 1.125), LONG + 1)


def _aligned(size: Size, step: int) -> Size:
    """Return the next multiples of `step`."""
    return tuple(-(-max(side, 1) // step) * step for side in size)


def _odd(side: int, step: int) -> int:
    """Return the next odd multiple of `step`."""
    count = -(-side // step)
    return (count + 1 - count % 2) * step


def _grown(size: Size, step: int, takes: Callable[[int, int], bool]) -> Size:
    """Return the next larger size that the graph takes, or one of 64 steps if it takes none before."""
    while not takes(*size) and max(size) < 64 * step:
        size = size[0] + step, size[1] + step
    return size
