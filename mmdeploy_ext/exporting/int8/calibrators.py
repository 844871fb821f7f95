"""Ranges by maximum, percentile or least squared error, and rounding to 8 bits, in numpy.

Source: pytorch-quantization's calibrators in NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95
(CUDA-BEVFusion/qat/lean/quantize.py, CUDA-CenterPoint/qat/tools/sparseconv_quantization.py): 2048 bins on
|x|, widened by full bins. Different: a first tensor of zeros fixes no width; beyond 16384 bins neighbours
merge; a percentile in the first bin gives its upper edge.
"""

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.int8 import METHODS, PERCENTILE

LEVELS = 127
"""Largest code, symmetric as in NVIDIA's: 0 stays 0."""
BINS = 2048
FIRST_CANDIDATE = 128
"""First bin in the search for the least error."""
MAX_BINS = 8 * BINS
"""Neighbours merge above this many bins."""
CHUNK = 1 << 21
"""Elements of candidates x bins at once: 16 MB."""


class Calibrator:
    """Collects tensors and returns their range: the largest absolute value."""

    def __init__(self) -> None:
        self._amax = 0.0

    def collect(self, values: np.ndarray) -> None:
        """Add a tensor; ValueError: not finite."""
        self._amax = max(self._amax, _largest(values))

    def amax(self) -> float:
        """The range; 0 without values other than 0."""
        return self._amax


class HistogramCalibrator(Calibrator):
    """A histogram of |x| with a range by 'mse' or 'percentile'.

    `width`: of a bin, 0 before the first tensor with values; `counts`: per bin.
    """

    def __init__(self, method: str = 'mse', percentile: float = PERCENTILE, bins: int = BINS) -> None:
        self.method, self.percentile = method, percentile
        self.width = 0.0
        self.counts = np.zeros(bins, np.int64)

    @property
    def edges(self) -> np.ndarray:
        """Edges (bins + 1,) float64, from 0."""
        return np.arange(len(self.counts) + 1) * self.width

    def collect(self, values: np.ndarray) -> None:
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
        # rounding may put the largest value beyond the last edge
        magnitudes = np.minimum(np.abs(values.reshape(-1)), upper)
        self.counts += np.histogram(magnitudes, len(self.counts), (0.0, upper))[0]

    def amax(self) -> float:
        """For 'mse' a bin's centre; for percentile its lower edge (first bin: upper)."""
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
    """New calibrator of one of `METHODS`; `percentile` in (0, 100]."""
    if method not in METHODS:
        raise UsageError(f'calibration method {method!r} is unknown; expected one of {", ".join(METHODS)}')
    if not 0 < percentile <= 100:
        raise UsageError(f'percentile {percentile:g}: expected above 0 and at most 100')
    return Calibrator() if method == 'max' else HistogramCalibrator(method, percentile)


def method_title(method: str, percentile: float = PERCENTILE) -> str:
    """'percentile 99.99', as in files of ranges."""
    return f'percentile {percentile:g}' if method == 'percentile' else method


def weight_amax(weight: np.ndarray) -> tuple[float, ...]:
    """Largest |w| per output channel of (O, k0, k1, k2, I).

    A channel of zeros gets the layer's largest range, or 1: engines divide by the scale.
    """
    values = np.abs(weight.reshape(len(weight), -1).astype(np.float32)).max(axis=1)
    return tuple(float(value) or float(values.max()) or 1.0 for value in values)


def _largest(values: np.ndarray) -> float:
    if values.size == 0:
        return 0.0
    largest = float(max(values.max(), -values.min()))
    if not np.isfinite(largest):
        raise ValueError(f'{int((~np.isfinite(values)).sum())} of {values.size} values are not finite')
    return largest


def fake_quantise(values: np.ndarray, amax: float | np.ndarray) -> np.ndarray:
    """Round to multiples of amax/127 in [-amax, amax]; float64 stays, other types become float32.

    `amax` is at least 1e-36 and broadcasts. Ties go to the even code, as NVIDIA's calibration and most
    engines do.
    """
    dtype = np.float64 if values.dtype == np.float64 else np.float32
    scale = np.asarray(LEVELS / np.asarray(amax, np.float64), dtype)
    codes = values.astype(dtype) * scale
    np.rint(codes, out=codes)
    np.clip(codes, -LEVELS, LEVELS, out=codes)
    return np.divide(codes, scale, out=codes)


def fake_quantise_kernel(weight: np.ndarray, amax: np.ndarray) -> np.ndarray:
    return fake_quantise(weight, np.asarray(amax)[:, None, None, None, None])


def fake_half(values: np.ndarray) -> np.ndarray:
    """Round to fp16, as float32; infinite from 65520 on."""
    with np.errstate(over='ignore'):
        return values.astype(np.float16).astype(np.float32)
