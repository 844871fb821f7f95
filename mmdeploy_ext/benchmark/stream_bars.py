"""What a benchmark of each family of frames exports, and the limits of its figures."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measured:
    """Contracts that a benchmark exports if it is given no files, and bars for the first of them.

    Attributes:
        contracts: their names.
        bars: (name, figure, largest value) of each limit; for the figures see `benchmark.streams.check_bars`.
        bars_of: the model and machine that the bars were set for.
    """

    contracts: tuple[str, ...]
    bars: tuple[tuple[str, str, float], ...] = ()
    bars_of: str = ''


FRAME_BARS = (
    ('frame, against PyTorch', 'torch', 0.5),
    ('peak memory, against PyTorch', 'memory', 1.3),
    ('last quarter of 100 frames or more, against the first', 'growth', 1.1),
)
"""Limits of one graph with a memory."""
PETR = Measured(
    contracts=('portable',),
    bars=(
        ('frame, against PyTorch', 'torch', 0.45),
        ('peak memory, against PyTorch', 'memory', 1.3),
    ),
    bars_of='the portable contract on a CPU',
)
MEASURED = {
    'streampetr': Measured(
        contracts=('deploy', 'fork'),
        bars=(
            ('frame, against PyTorch', 'torch', 0.36),
            ('frame, against the fork contract', 'fork', 0.95),
            ('ms of position embedding in the median frame', 'embedding', 0.0),
            ('bytes fed besides the images', 'fed_bytes', 64_000),
        ),
        bars_of='the deploy contract of R50 at 704x256 on a CPU, where the convolutions are most of the time',
    ),
    'bevformer': Measured(('portable',), FRAME_BARS, 'the portable contract of tiny at 480x800 on a CPU'),
    'sparse4d': Measured(('portable',), FRAME_BARS, 'the portable contract of R50 at 256x704 on a CPU'),
    'petr': PETR,
    'petrv2': PETR,
}
"""By the name of a family; others have their default contract and no bars."""
