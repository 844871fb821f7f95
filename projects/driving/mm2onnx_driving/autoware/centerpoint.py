"""The path of lidar_centerpoint from points to objects, without Autoware: its two files on ONNX Runtime.

    runtime = AutowareCenterPoint('work_dirs/autoware')    # written with --contract autoware
    objects = runtime.step(Sweep(points)).detections

Glossary: P points, D values of a point.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.boxes import OUTPUTS, decode, suppressed
from mm2onnx_driving.autoware.nodes import CENTERPOINT
from mm2onnx_driving.autoware.pillars import decorated, scattered
from mm2onnx_driving.autoware.settings import read_settings
from mmdeploy_ext.runtime.exported import Runtime, check_finite, files_by_name
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Sweep

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
