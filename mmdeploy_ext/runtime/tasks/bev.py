"""Draws bird's-eye-view maps of two engines and their difference. Needs OpenCV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from mmdeploy_ext.spec.results import Pair

PANEL, BAND, GAP = 420, 46, 8
"""Pixels: longer side of a map, height of the text above it, room between maps."""
GAMMA = 0.5
"""Power of drawn values: a few near sites would darken the rest."""
DECADES = 8
"""Decades below the scale in the logarithmic difference."""


def draw_bev(pair: Pair) -> np.ndarray:
    """Draw both maps (largest magnitude over the channels) and their difference, (466, 1276, 3) uint8 BGR."""
    reference, candidate = (np.abs(side).max(axis=0) for side in (pair.reference, pair.candidate))
    difference = np.abs(pair.reference - pair.candidate).max(axis=0)
    finite = (side[np.isfinite(side)] for side in (reference, candidate))
    scale = max(float(values.max(initial=0)) for values in finite) or 1.0
    with np.errstate(divide='ignore'):
        decades = np.log10(np.nan_to_num(difference / scale, nan=1.0))
    brightness = np.clip(decades / DECADES + 1, 0, 1)
    largest = float(np.nan_to_num(difference, nan=np.inf).max(initial=0))
    scales = (
        f'max over channels, 0 to {scale:.3g}, brightened',
        'the same scale',
        f'log scale, 1e-{DECADES} to 1 of the maximum; largest {largest:.2e}',
    )
    panels = (
        _panel((reference / scale) ** GAMMA, cv2.COLORMAP_VIRIDIS, 'spconv', scales[0]),
        _panel((candidate / scale) ** GAMMA, cv2.COLORMAP_VIRIDIS, pair.engine, scales[1]),
        _panel(brightness, cv2.COLORMAP_INFERNO, 'difference', scales[2]),
    )
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def _panel(values: np.ndarray, colours: int, title: str, subtitle: str) -> np.ndarray:
    pixels = (255 * np.clip(np.nan_to_num(values, nan=1.0), 0, 1)).astype(np.uint8)
    height, width = pixels.shape
    factor = PANEL / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    picture = cv2.applyColorMap(cv2.resize(pixels, size, interpolation=interpolation), colours)
    panel = np.full((PANEL + BAND, PANEL, 3), 255, np.uint8)
    panel[BAND : BAND + picture.shape[0], : picture.shape[1]] = picture
    for text, y, size in ((title, 18, 0.55), (subtitle, 38, 0.4)):
        cv2.putText(panel, text, (2, y), cv2.FONT_HERSHEY_SIMPLEX, size, (40, 34, 27), 1, cv2.LINE_AA)
    return panel
