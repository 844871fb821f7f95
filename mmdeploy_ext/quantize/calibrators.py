"""Ranges from values: max, percentile, or least squared error over a histogram; rounding. Needs numpy only.

Source: pytorch-quantization's max and histogram calibrators, as far as `ALGORITHM.md` section 6 states them:
2048 bins on |x| from 0, later tensors widen the histogram by whole bins. Differs in: a first tensor of
zeros does not fix the width of a bin; beyond 16384 bins neighbours are merged (one far outlier in a later
sweep would otherwise cost gigabytes); a percentile in the first bin gives that bin's upper edge, not 0.
"""

import numpy as np

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.quantize import METHODS, PERCENTILE

LEVELS = 127
"""Largest code of a symmetric 8-bit quantiser: -127 to 127, as NVIDIA's, so that 0 stays 0."""
BINS = 2048
FIRST_CANDIDATE = 128
"""Bin whose centre is the smallest range that the search for the least error tries."""
MOST_BINS = 8 * BINS
CHUNK = 1 << 21
"""Elements of candidates x bins that are evaluated at once: 16 MB."""


class Calibrator:
    """Collects tensors, then gives their range: the largest absolute value."""

    def __init__(self) -> None:
        self._amax = 0.0

    def collect(self, values: np.ndarray) -> None:
        """Take a tensor in; an empty one changes nothing. A value that is not finite is a ValueError."""
        self._amax = max(self._amax, _largest(values))

    def amax(self) -> float:
        """Return the range; 0 where only zeros, or nothing, came."""
        return self._amax


class HistogramCalibrator(Calibrator):
    """A histogram of |x|, from which the range is chosen at the end by 'mse' or a 'percentile'.

    There are so many `bins` for the first tensor that is not all zeros.
    """

    def __init__(self, method: str = 'mse', percentile: float = PERCENTILE, bins: int = BINS) -> None:
        self.method, self.percentile = method, percentile
        self.width = 0.0
        self.counts = np.zeros(bins, np.int64)

    @property
    def edges(self) -> np.ndarray:
        """The bins' edges, (bins + 1,) float64, from 0."""
        return np.arange(len(self.counts) + 1) * self.width

    def collect(self, values: np.ndarray) -> None:
        """See `Calibrator`."""
        largest = _largest(values)
        if largest == 0:
            self.counts[0] += values.size
            return
        if self.width == 0:
            self.width = largest / len(self.counts)
        self._widen(largest)
        upper = self.width * len(self.counts)
        # the widest value may lie a rounding error beyond the last edge
        magnitudes = np.minimum(np.abs(values.reshape(-1)), upper)
        self.counts += np.histogram(magnitudes, len(self.counts), (0.0, upper))[0]

    def _widen(self, largest: float) -> None:
        while largest > self.width * MOST_BINS * (1 + 1e-9):
            self.counts = np.pad(self.counts, (0, len(self.counts) % 2)).reshape(-1, 2).sum(1)
            self.width *= 2
        needed = int(np.ceil(largest / self.width * (1 - 1e-9)))
        self.counts = np.pad(self.counts, (0, max(needed - len(self.counts), 0)))

    def amax(self) -> float:
        """See `Calibrator`."""
        if self.width == 0:
            return 0.0
        if self.method == 'mse':
            return self._least_error()
        share = np.cumsum(self.counts) / self.counts.sum()
        index = int(np.searchsorted(share, self.percentile / 100 - 1e-12))
        return float(self.edges[min(max(index, 1), len(self.counts))])

    def _least_error(self) -> float:
        edges = self.edges
        centres = (edges[1:] + edges[:-1]) / 2
        candidates = centres[FIRST_CANDIDATE:]
        filled = self.counts > 0
        values, counts = centres[filled], self.counts[filled].astype(np.float64)
        errors = []
        step = max(1, CHUNK // len(values))
        for start in range(0, len(candidates), step):
            off = fake_quantise(values[None], candidates[start : start + step, None]) - values
            errors.append(np.square(off) @ counts)
        return float(candidates[np.argmin(np.concatenate(errors))])


def calibrator(method: str, percentile: float = PERCENTILE) -> Calibrator:
    """Return a new calibrator by name; a UsageError refuses other methods, and a percentile that is none."""
    if method not in METHODS:
        raise UsageError(f'calibration method {method!r} is unknown; expected one of {", ".join(METHODS)}')
    if not 0 < percentile <= 100:
        raise UsageError(f'percentile {percentile:g}: expected above 0 and at most 100')
    return Calibrator() if method == 'max' else HistogramCalibrator(method, percentile)


def title(method: str, percentile: float = PERCENTILE) -> str:
    """Return the name that a file of ranges keeps."""
    return f'percentile {percentile:g}' if method == 'percentile' else method


def weight_amax(weight: np.ndarray) -> tuple[float, ...]:
    """Return the largest |w| per output channel of a kernel (O, k0, k1, k2, I).

    A channel of zeros gets the layer's largest range (1 where all are zeros): its codes are 0 with any scale,
    and a scale of 0 divides by zero on the engine. A weight that is not finite is a ValueError.
    """
    _largest(weight)
    values = np.abs(weight.reshape(len(weight), -1).astype(np.float32)).max(axis=1)
    return tuple(float(value) or float(values.max()) or 1.0 for value in values)


def _largest(values: np.ndarray) -> float:
    if values.size == 0:
        return 0.0
    largest = float(max(values.max(), -values.min()))
    if not np.isfinite(largest):
        raise ValueError(f'{int((~np.isfinite(values)).sum())} of {values.size} values are not finite')
    return largest


def fake_quantise(values: np.ndarray, amax: float | np.ndarray, ties: str = 'even') -> np.ndarray:
    """Round to what 8 bits hold: the nearest of 255 steps of amax/127, clipped at +-amax.

    `amax` is a number above 0, or an array that broadcasts against `values`; ties go to 'even', as NVIDIA's
    calibration and most engines have it, or 'away' from zero. Float64 stays float64, all else becomes
    float32.
    """
    kind = np.float64 if values.dtype == np.float64 else np.float32
    scale = np.asarray(LEVELS / np.asarray(amax, np.float64), kind)
    codes = values.astype(kind) * scale
    if ties == 'even':
        np.rint(codes, out=codes)
    else:
        np.copysign(np.floor(np.abs(codes) + kind(0.5)), codes, out=codes)
    np.clip(codes, -LEVELS, LEVELS, out=codes)
    return np.divide(codes, scale, out=codes)


def fake_quantise_kernel(weight: np.ndarray, amax: np.ndarray, ties: str = 'even') -> np.ndarray:
    """Round a kernel (O, k0, k1, k2, I) with one range per output channel, (O,)."""
    return fake_quantise(weight, np.asarray(amax)[:, None, None, None, None], ties)


def fake_half(values: np.ndarray) -> np.ndarray:
    """Round to fp16; what is beyond 65504 becomes infinite, as on an engine."""
    with np.errstate(over='ignore'):
        return values.astype(np.float16).astype(np.float32)
