"""Procedural fills: noise, stripes, checks, gradients and blobs between two colours."""

import math

import cv2
import numpy as np


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    field = np.zeros((height, width), np.float32)
    cell, weight, total = float(rng.uniform(16, 48)), 1.0, 0.0
    while cell >= 2 and weight > 0.1:
        grid = rng.random((math.ceil(height / cell) + 2, math.ceil(width / cell) + 2), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += weight
        cell, weight = cell / 2, weight * 0.6
    return np.clip((field / total - 0.5) * 2.2 + 0.5, 0, 1)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance along a random direction, in pixels, from the middle."""
    angle = rng.uniform(0, 2 * math.pi)
    x = (np.arange(width, dtype=np.float32) - width / 2) * np.float32(math.cos(angle))
    y = (np.arange(height, dtype=np.float32) - height / 2) * np.float32(math.sin(angle))
    return y[:, None] + x[None, :]


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    period, hardness = rng.uniform(5, 18), rng.uniform(1, 4)
    wave = np.sin(_ramp(rng, height, width) * np.float32(2 * math.pi / period))
    return np.clip(wave * np.float32(hardness) / 2 + 0.5, 0, 1)


def _checker(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cell = rng.uniform(4, 14)
    along, across = (np.floor(_ramp(rng, height, width) / cell) for _ in range(2))
    return ((along + across) % 2).astype(np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.clip(_ramp(rng, height, width) / np.float32(max(height, width)) + 0.5, 0, 1)


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    speckle = rng.random((height, width), dtype=np.float32)
    smooth = cv2.GaussianBlur(speckle, (0, 0), float(rng.uniform(1, 3)))
    return np.clip((smooth - smooth.mean()) / (4 * smooth.std() + 1e-6) + 0.5, 0, 1)


PATTERNS = (_noise, _stripes, _checker, _gradient, _blobs)


def texture(rng: np.random.Generator, height: int, width: int, colours: np.ndarray) -> np.ndarray:
    """Fill a rectangle with a random pattern between two colours (2, 3) BGR in 0..255, under uneven light.

    Returned is (H, W, 3) float32, BGR, about 0..255.
    """
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, height, width)
    light = 1 + 0.2 * (_gradient(rng, height, width) - 0.5)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1, 5))
    planes = [light * (first + (second - first) * pattern) + grain for first, second in colours.T]
    return cv2.merge(planes)  # plane by plane: three times as fast as broadcasting over a last axis of 3


def colour_pair(
    rng: np.random.Generator,
    contrast: tuple[float, float],
    unlike: np.ndarray | None = None,
    distance: float = 0.0,
) -> np.ndarray:
    """Draw two colours of one fill, (2, 3) float32 BGR.

    `contrast` is the least and greatest share of the way to an unrelated colour that the second one goes; the
    mean is at least `distance` (Euclidean, 0..255) from the colour `unlike` (3,).
    """
    while True:
        first, other = rng.uniform(20, 235, (2, 3)).astype(np.float32)
        second = first + (other - first) * np.float32(rng.uniform(*contrast))
        pair = np.stack([first, second])
        if unlike is None or np.linalg.norm(pair.mean(0) - unlike) >= distance:
            return pair
