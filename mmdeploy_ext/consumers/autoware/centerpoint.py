"""lidar_centerpoint's path from points to objects, without Autoware: its two files on ONNX Runtime.

    runtime = AutowareCenterPoint('work_dirs/autoware')    # written with --contract autoware
    objects = runtime.objects(points)

Needs numpy, onnx, PyYAML and ONNX Runtime. No node was run here; see docs/autoware.md.

Glossary: P points, n pillars, V rows of the encoder, F values of a decorated point.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.boxes import OUTPUTS, Objects, decode, suppressed
from mmdeploy_ext.consumers.autoware.centerpoint_rules import ENCODER, HEAD
from mmdeploy_ext.consumers.autoware.pillars import decorated, scattered
from mmdeploy_ext.consumers.autoware.settings import Settings, read_settings
from mmdeploy_ext.core.errors import PointsError
from mmdeploy_ext.runtime.exported import Memoryless, check_finite, export_files
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Sweep

GRAPHS = (ENCODER, HEAD)
"""Files of one export, by their `form`."""
LONGEST_S = 10.0
"""Of sweeps of the past: two sweeps are 0.1 s apart."""
SPATIAL, PILLARS = 'spatial_features', 'pillar_features'


class AutowareCenterPoint(Memoryless):
    """A folder of lidar_centerpoint: a `Stepper` of sweeps, without a memory.

    Attributes:
        settings: of its manifest.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        engine: str = 'OnnxRuntimeBackend',
        node: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        """Open the folder, or its two files; see `LidarOnnx`.

        `node` gives `circle_m`, `iou` or `iou_search_m`, where they are not the node's defaults.
        ModelFileError: the node would reject the folder, or read it wrongly.
        """
        super().__init__()
        files = dict(zip(GRAPHS, export_files(paths, GRAPHS), strict=True))
        settings: Settings = read_settings(files[ENCODER].parent)
        self.settings = dataclasses.replace(settings, **(node or {}))
        self.sessions = {name: self.opened(engine, path, options) for name, path in files.items()}
        self.seconds = dict.fromkeys((*GRAPHS, 'boxes'), 0.0)

    def objects(self, points: np.ndarray) -> Objects:
        """Return what the node publishes of one cloud.

        Args:
            points: (P, D) float32: x, y, z in metres of the vehicle's frame, intensity 0..255 where D is 5,
                time lag in seconds last; see `pillars.densified`.

        Raises:
            DataError: points of another width, NaN, none in range, or time lags that cannot be.
            InferenceError: the engine failed or gave NaN.
        """
        check_columns(check_points(points, self.settings.point_width), self.settings)
        return self._run(points, '')[1]

    def step(self, sweep: Sweep) -> StepResult:
        """Detect, and keep what is between the files; raises what `objects` raises, but for columns.

        The sweeps of a proof may hold anything beside x, y, z. Pillars are given in the order of their cells,
        since the node has no order of its own.
        """
        outputs, found = self._run(sweep.points, sweep.name)
        return StepResult(outputs, found.detections())

    def _run(self, points: np.ndarray, name: str) -> tuple[dict[str, np.ndarray], Objects]:
        settings = self.settings
        points = check_points(points, settings.point_width, name)
        check_in_range(points, settings.cloud, name)
        start = time.perf_counter()
        given, at = decorated(points, settings)
        padded = np.zeros((settings.pillars, *given.shape[1:]), np.float32)
        padded[: len(given)] = given
        (features,) = self.sessions[ENCODER].infer(dict(input_features=padded)).values()
        features = features[: len(given)]
        canvas = scattered(features, at, settings)
        start = self.passed(ENCODER, start)
        outputs = dict(self.sessions[HEAD].infer({SPATIAL: canvas}))
        check_finite(outputs, name or 'sweep')
        start = self.passed(HEAD, start)
        named = dict(zip(OUTPUTS, outputs.values(), strict=True))
        found = suppressed(decode(named, settings), settings)
        self.passed('boxes', start)
        order = np.lexsort((at[:, 1], at[:, 0]))
        return {PILLARS: features[order], SPATIAL: canvas, **outputs}, found


def check_columns(points: np.ndarray, settings: Settings) -> None:
    """Refuse intensities and time lags of points (P, D), at least one, that cannot be those of the node.

    Raises:
        PointsError: says which values there are.
    """
    lags = points[:, -1]
    if lags.min() < 0 or lags.max() > LONGEST_S:
        raise PointsError(
            f'points: the last column is {lags.min():g} to {lags.max():g}, expected time lags in seconds, 0 '
            f'to {LONGEST_S:g}; fill it with zeros for a single sweep'
        )
    if settings.point_width != 5:
        return
    given = points[:, 3]
    normalised = given.max() <= 1 and (given != np.rint(given)).any()
    if normalised or given.min() < 0 or given.max() > 255:
        raise PointsError(
            f'points: column 3 is {given.min():g} to {given.max():g}, expected intensities 0 to 255 as '
            f'the node feeds them, not normalised'
        )
