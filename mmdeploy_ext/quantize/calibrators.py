"""Ranges of values by maximum, percentile or least squared error, and rounding to 8 bits.

Of other packages it needs numpy alone.

Source: pytorch-quantization's max and histogram calibrators, as NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95 uses
them (CUDA-BEVFusion/qat/lean/quantize.py, CUDA-CenterPoint/qat/tools/sparseconv_quantization.py): 2048 bins
on |x| from 0, later tensors widen the histogram by full bins. Differs in: a first tensor of zeros
does not fix the width of a bin; beyond 16384 bins neighbours are merged (one far outlier in a later sweep
would otherwise cost gigabytes); a percentile in the first bin gives that bin's upper edge, not the lower one,
which is 0.

Glossary: O output and I input channels of a convolution, k0, k1, k2 its kernel.
"""

import numpy as np

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.quantize import METHODS, PERCENTILE

LEVELS = 127
"""Largest code of a symmetric 8-bit quantiser: -127 to 127, as NVIDIA's, so that 0 stays 0."""
BINS = 2048
"""Bins of a histogram to begin with."""
FIRST_CANDIDATE = 128
"""Bin whose centre is the smallest range that the search for the least error tries."""
MAX_BINS = 8 * BINS
"""Bins of a histogram above which neighbours are merged."""
CHUNK = 1 << 21
"""Elements of candidates x bins that are evaluated at a time: 16 MB."""


class Calibrator:
    """Collects tensors of floats and returns their range: the largest absolute value."""

    def __init__(self) -> None:
        self._amax = 0.0

    def collect(self, values: np.ndarray) -> None:
        """Add a tensor, which may be empty; ValueError: it has values that are not finite."""
        self._amax = max(self._amax, _largest(values))

    def amax(self) -> float:
        """Return the range; 0 if there were no values, or only zeros."""
        return self._amax


class HistogramCalibrator(Calibrator):
    """A histogram of |x|, from which `amax` chooses the range by 'mse' or 'percentile'.

    It has `bins` bins up to the largest value of the first tensor that is not all zeros, and more for larger
    values of later ones; above `MAX_BINS` each two become one. `width` is that of a bin at the moment, 0
    before the first such tensor, and `counts` has the number of values in each bin.
    """

    def __init__(self, method: str = 'mse', percentile: float = PERCENTILE, bins: int = BINS) -> None:
        """Make an empty histogram.

        Args:
            method: 'mse' or 'percentile'.
            percentile: percentile of |x|, in percent; used by the method 'percentile'.
            bins: number of bins to begin with; for 'mse' above `FIRST_CANDIDATE`.
        """
        self.method, self.percentile = method, percentile
        self.width = 0.0
        self.counts = np.zeros(bins, np.int64)

    @property
    def edges(self) -> np.ndarray:
        """The bins' edges, (bins + 1,) float64, from 0."""
        return np.arange(len(self.counts) + 1) * self.width

    def collect(self, values: np.ndarray) -> None:
        """Add the absolute values of a tensor to the histogram; ValueError: some are not finite."""
        largest = _largest(values)
        if largest == 0:
            self.counts[0] += values.size
            return
        if self.width == 0:
            self.width = largest / len(self.counts)
        while largest > self.width * MAX_BINS * (1 + 1e-9):
            self.counts = np.pad(self.counts, (0, len(self.counts) % 2)).reshape(-1, 2).sum(1)
            self.width *= 2
        bins = int(np.ceil(largest / self.width * (1 - 1e-9)))
        self.counts = np.pad(self.counts, (0, max(bins - len(self.counts), 0)))
        upper = self.width * len(self.counts)
        # the largest value may lie a rounding error beyond the last edge
        magnitudes = np.minimum(np.abs(values.reshape(-1)), upper)
        self.counts += np.histogram(magnitudes, len(self.counts), (0.0, upper))[0]

    def amax(self) -> float:
        """Return the range by the method; 0 if there were no values, or only zeros.

        By 'mse' it is the centre of a bin. By a percentile it is the lower edge of the bin in which that
        lies, of the first bin the upper one.
        """
        if self.width == 0:
            return 0.0
        if self.method == 'mse':
            return self._least_error_range()
        share = np.cumsum(self.counts) / self.counts.sum()
        index = int(np.searchsorted(share, self.percentile / 100 - 1e-12))
        return float(self.edges[min(max(index, 1), len(self.counts))])

    def _least_error_range(self) -> float:
        edges = self.edges
        centres = (edges[1:] + edges[:-1]) / 2
        candidates = centres[FIRST_CANDIDATE:]
        filled = self.counts > 0
        values, counts = centres[filled], self.counts[filled].astype(np.float64)
        errors = []
        step = max(1, CHUNK // len(values))
        for start in range(0, len(candidates), step):
            deviations = fake_quantise(values[None], candidates[start : start + step, None]) - values
            errors.append(np.square(deviations) @ counts)
        return float(candidates[np.argmin(np.concatenate(errors))])


def make_calibrator(method: str, percentile: float = PERCENTILE) -> Calibrator:
    """Return a new calibrator of a method, one of `METHODS`.

    `percentile` is in percent, above 0 and at most 100. UsageError: another method or percentile.
    """
    if method not in METHODS:
        raise UsageError(f'calibration method {method!r} is unknown; expected one of {", ".join(METHODS)}')
    if not 0 < percentile <= 100:
        raise UsageError(f'percentile {percentile:g}: expected above 0 and at most 100')
    return Calibrator() if method == 'max' else HistogramCalibrator(method, percentile)


def method_title(method: str, percentile: float = PERCENTILE) -> str:
    """Return a method as files of ranges name it: 'percentile 99.99', or the name of another method."""
    return f'percentile {percentile:g}' if method == 'percentile' else method


def weight_amax(weight: np.ndarray) -> tuple[float, ...]:
    """Return the largest |w| per output channel of a kernel (O, k0, k1, k2, I).

    A channel of zeros gets the layer's largest range (1 if all weights are zeros): its codes are 0 with any
    scale, and a scale of 0 divides by zero on the engine. ValueError: a weight is not finite.
    """
    _largest(weight)
    values = np.abs(weight.reshape(len(weight), -1).astype(np.float32)).max(axis=1)
    return tuple(float(value) or float(values.max()) or 1.0 for value in values)


def _largest(values: np.ndarray) -> float:
    """Return the largest absolute value, 0 of an empty array; ValueError: a value is not finite."""
    if values.size == 0:
        return 0.0
    largest = float(max(values.max(), -values.min()))
    if not np.isfinite(largest):
        raise ValueError(f'{int((~np.isfinite(values)).sum())} of {values.size} values are not finite')
    return largest


def fake_quantise(values: np.ndarray, amax: float | np.ndarray) -> np.ndarray:
    """Return values rounded to 8 bits: to the nearest multiple of amax/127 from -amax to amax.

    `amax` is a number above 0 (for float32 at least 1e-36), or an array whose shape broadcasts with the shape
    of `values`. Ties go to the even code, as NVIDIA's calibration and most engines do. Float64 stays float64,
    other types become float32.
    """
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    scale = np.asarray(LEVELS / np.asarray(amax, np.float64), dtype)
    codes = values.astype(dtype) * scale
    np.rint(codes, out=codes)
    np.clip(codes, -LEVELS, LEVELS, out=codes)
    return np.divide(codes, scale, out=codes)


def fake_quantise_kernel(weight: np.ndarray, amax: np.ndarray) -> np.ndarray:
    """Return a kernel (O, k0, k1, k2, I) rounded to 8 bits, each channel O by its range in `amax` (O,)."""
    return fake_quantise(weight, np.asarray(amax)[:, None, None, None, None])


def fake_half(values: np.ndarray) -> np.ndarray:
    """Return values rounded to fp16, as float32; those beyond 65504 (from 65520 on) become infinite."""
    with np.errstate(over='ignore'):
        return values.astype(np.float16).astype(np.float32)
