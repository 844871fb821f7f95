"""Rounding of float values to what int8 and fp16 hold. Needs numpy only."""

from __future__ import annotations

import numpy as np

LEVELS = 127
"""Largest code of a symmetric 8-bit quantiser: -127 to 127, as NVIDIA's, so that 0 stays 0."""


def fake_quantise(values: np.ndarray, amax: float | np.ndarray, ties: str = 'even') -> np.ndarray:
    """Round to what 8 bits hold: the nearest of 255 steps of amax/127, clipped at +-amax.

    Args:
        values: (...) float.
        amax: above 0; a number, or an array that broadcasts against `values`.
        ties: 'even', as NVIDIA's calibration and most engines, or 'away' from zero.

    Returns:
        float32, or float64 where `values` are float64.
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
