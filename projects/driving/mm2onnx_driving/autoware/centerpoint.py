"""The path of lidar_centerpoint from points to objects, without Autoware: its two files on ONNX Runtime.

    runtime = AutowareCenterPoint('work_dirs/autoware')    # written with --contract autoware
    objects = runtime.step(Sweep(points)).detections

Source of the pillars: autoware_universe 5e12a711, autoware_lidar_centerpoint,
lib/preprocess/{voxel_generator.cpp, preprocess_kernel.cu}, lib/network/scatter_kernel.cu,
include/.../centerpoint_config.hpp (formulas, no code).

Glossary: P points, D values of a point, n pillars, F values of a decorated point, H, W cells of the map along
y and x.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.boxes import OUTPUTS, decode, read_settings, suppressed
from mm2onnx_driving.autoware.nodes import CENTERPOINT, CHANNELS, POINTS
from mmdeploy_ext.runtime.exported import Runtime, check_finite, files_by_name
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points

if TYPE_CHECKING:
    from mm2onnx_driving.autoware.boxes import CenterPointSettings
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Sweep


# ---- points to decorated pillars and the map


def decorated(points: np.ndarray, settings: CenterPointSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's input of one cloud, and the pillars' cells.

    Args:
        points: (P, 4 or 5) float32; points outside the range, and beyond 32 per pillar, are dropped.
        settings: of the manifest.

    Returns:
        (n, 32, F) float32, zeros after a pillar's last point, and (n, 2) int64 cells y, x, sorted by falling
            x, then rising y; at most `max_voxel_size`. F: the point, its offset x, y, z from the mean of its
            pillar's kept points, and its offset from the pillar's centre: x, y, and z unless F is 9.
    """
    low, high = np.float32(settings.point_cloud_range[:3]), np.float32(settings.point_cloud_range[3:])
    points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]
    columns, rows = settings.grid
    size = np.float32(settings.voxel_size)
    x, y = np.floor((points[:, :2] - low[:2]) / size[:2]).astype(np.int64).T
    x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
    order = (columns - 1 - x) * rows + y
    keys, pillar, counts = np.unique(order, return_inverse=True, return_counts=True)
    by_pillar = np.argsort(pillar, kind='stable')
    rank = np.empty(len(points), np.int64)
    rank[by_pillar] = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    fits = (rank < POINTS) & (pillar < settings.max_voxel_size)
    keys, counts = keys[: settings.max_voxel_size], counts[: settings.max_voxel_size].clip(max=POINTS)
    pillars = np.zeros((len(keys), POINTS, points.shape[1]), np.float32)
    pillars[pillar[fits], rank[fits]] = points[fits]
    cells = np.stack([keys % rows, columns - 1 - keys // rows], axis=1)
    return _features(pillars, counts, cells, low, size, settings.encoder_in_feature_size), cells


def _features(
    pillars: np.ndarray, counts: np.ndarray, cells: np.ndarray, low: np.ndarray, size: np.ndarray, width: int
) -> np.ndarray:
    xyz = pillars[..., :3]
    mean = xyz.sum(1, keepdims=True, dtype=np.float32) / counts[:, None, None].astype(np.float32)
    index = np.concatenate([cells[:, ::-1], np.zeros((len(cells), 1), np.int64)], axis=1).astype(np.float32)
    centre = size / np.float32(2) + index * size + low
    axes = 2 if width == 9 else 3
    features = np.concatenate([pillars, xyz - mean, (xyz - centre[:, None])[..., :axes]], axis=2)
    is_point = np.arange(pillars.shape[1]) < counts[:, None]
    return np.where(is_point[..., None], features, np.float32(0))


def scattered(features: np.ndarray, cells: np.ndarray, settings: CenterPointSettings) -> np.ndarray:
    """Return the map (1, 32, H, W) float32 of features (n, 1, 32) in the cells (n, 2) y, x."""
    columns, rows = settings.grid
    canvas = np.zeros((1, CHANNELS, rows, columns), np.float32)
    canvas[0, :, cells[:, 0], cells[:, 1]] = features[:, 0]
    return canvas


# ---- stream

GRAPHS = ENCODER, HEAD = CENTERPOINT.graphs
"""The `form` in the metadata of each file of an export."""
SPATIAL, PILLARS = 'spatial_features', 'pillar_features'
"""The node scatters pillars to a map between the encoder's output and the head's input."""


class AutowareCenterPoint(Runtime):
    """The files of lidar_centerpoint: a `runtime.frames.Stepper` of sweeps, without a memory.

    Attributes:
        seconds: time spent so far, by the names of `GRAPHS` and 'boxes'.
        sessions: name of a file -> its session.
        settings: of its manifest.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        engine: str = 'OnnxRuntimeBackend',
        **options: Any,
    ) -> None:
        super().__init__()
        files = files_by_name(paths, GRAPHS)
        self.settings = read_settings(files[ENCODER].parent)
        self.sessions = {name: self.opened(engine, path, options) for name, path in files.items()}
        self.seconds = dict.fromkeys((*GRAPHS, 'boxes'), 0.0)

    def step(self, sweep: Sweep) -> StepResult:
        """Detect in one sweep: x, y, z in metres, intensity 0..255 of five values, time lag in seconds."""
        settings = self.settings
        points = check_points(sweep.points, settings.point_feature_size, sweep.name)
        check_in_range(points, settings.point_cloud_range, sweep.name)
        start = time.perf_counter()
        pillars, cells = decorated(points, settings)
        padded = np.zeros((settings.max_voxel_size, *pillars.shape[1:]), np.float32)
        padded[: len(pillars)] = pillars
        (features,) = self.sessions[ENCODER].infer(dict(input_features=padded)).values()
        features = features[: len(pillars)]
        canvas = scattered(features, cells, settings)
        start = self.passed(ENCODER, start)
        outputs = dict(self.sessions[HEAD].infer({SPATIAL: canvas}))
        check_finite(outputs, sweep.name or 'sweep')
        start = self.passed(HEAD, start)
        named = dict(zip(OUTPUTS, outputs.values(), strict=True))
        objects = suppressed(decode(named, settings), settings.class_names)
        self.passed('boxes', start)
        order = np.lexsort((cells[:, 1], cells[:, 0]))
        return StepResult({PILLARS: features[order], SPATIAL: canvas, **outputs}, objects)
