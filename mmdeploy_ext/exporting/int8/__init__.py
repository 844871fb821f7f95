"""INT8: calibration, ranges in an editable file, and effects of quantisation."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base import cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

METHODS = ('mse', 'percentile', 'max')
"""Methods for ranges of sparse graphs, default first: least squared error, percentile, largest |x|."""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""Methods for ranges of dense graphs, default first: extremes, or extremes clipped by percentile or error.
"""
PERCENTILE = 99.99
"""Default percentile of |x|, in percent."""

KEEP_RESULTS = 0.999
"""Default share of PyTorch's results that a precision plan keeps."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Options of a calibration of a sparse backbone; None: the family's reference."""

    method: str = cli.option(
        '--method', 'method for ranges of inputs (default: mse)', METHODS[0], choices=METHODS
    )
    batches: int = cli.option(
        '--batches N', 'number of sweeps, evenly spread; 0 uses all (default: 100)', 100
    )
    half: bool | None = cli.option(
        '--fp16-ranges',
        'round ranges to fp16 (default: only for BEVFusion, as the reference)',
        None,
        action=argparse.BooleanOptionalAction,
    )
    root: str = cli.option(
        '--data-root DIR', 'infos: folder of the data set (default: the folder of the infos)', ''
    )
    percentile: float = cli.option('--percentile P', 'for --method percentile (default: 99.99)', PERCENTILE)
    add_method: str | None = cli.option(
        '--add-method',
        'method for residual additions (default: max for CenterPoint, as the reference, else --method)',
        None,
        choices=METHODS,
    )
    unfolded: Sequence[str] | None = cli.option(
        '--unfolded MODULE...',
        'modules whose weight range comes from the kernel before folding (default with '
        '--int8-fp16-input-output: conv_input.0 of CenterPoint, as in the reference)',
        None,
    )
    int8_fp16_io: bool = cli.option(
        '--int8-fp16-input-output',
        "keep the first and last layer in fp16, as in the reference's INT8 file",
        False,
    )

    def resolved(self, reference: Any) -> Calibration:
        """Replace None by the values of a family's `int8`."""
        unfolded = reference.unfolded_ranges if self.int8_fp16_io else ()
        defaults = dict(add_method=reference.add_method, unfolded=unfolded, half=reference.half_ranges)
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


def tracked(items: Iterable[Any], title: str) -> Iterator[Any]:
    return cli.tracked(items, len(items) if hasattr(items, '__len__') else None, title)


def digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
