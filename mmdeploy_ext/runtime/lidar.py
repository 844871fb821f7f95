"""LiDAR detectors from points to boxes: sparse backbone or pillars, and the dense head.

P points of D values, N voxels, M points of a voxel, C channels, H, W rows (y) and columns (x) of the
bird's-eye view.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.runtime.preprocess.points import assigned, pillars
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.metadata import Metadata, damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths

GRAPHS = ('backbone', 'head')
PILLARS = 'pillars'
INPUTS = ('voxels', 'num_points', 'coors')
"""Inputs of a pillar graph: points per voxel, their number, and voxel places."""
DYNAMIC_INPUTS = ('points', 'rows', 'coors')
"""Inputs with all points: points in range, voxel row of each, and voxel places."""


class PillarsOnnx(Runtime):
    def __init__(self, path: str | Path, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        super().__init__()
        self.session = self.opened(engine, path, options)
        self.metadata, self.props = self.session.metadata, self.session.metadata.to_props()
        axes = {tensor.name: tensor.axes for tensor in self.session.spec.inputs}
        points = axes.get(INPUTS[0], ())[1:2]
        if self.rule.mode == 'hard' and points and points[0] != self.rule.max_points:
            reason = (
                f'max_points is {self.rule.max_points}, but {INPUTS[0]!r} has {points[0]} points per voxel'
            )
            raise damaged(path, 'preprocess', reason)

    def step(self, points: np.ndarray) -> np.ndarray:
        """Bird's-eye view (1, C, H, W) float32 of points (P, D) in metres, LiDAR frame."""
        if self.rule.mode == 'dynamic':
            feeds = dict(zip(DYNAMIC_INPUTS, assigned(points, self.rule), strict=True))
        else:
            feeds = dict(zip(INPUTS, pillars(points, self.rule), strict=True))
        return self.session.infer(feeds)['bev']


class LidarOnnx(Runtime):
    """An exported LiDAR detector: a stateless `Stepper` of sweeps.

    Attributes:
        graphs: names of the files.
        decode: (head outputs, facts) -> boxes, best first.
        backbone: points to the bird's-eye view: `ScnOnnx` or `PillarsOnnx`.
        head: engine from the view to raw outputs.
        seconds: by part: `graphs` and `boxes`.
    """

    family: ClassVar[str]
    graphs: ClassVar[tuple[str, ...]] = GRAPHS
    decode: ClassVar[Callable[[Mapping[str, np.ndarray], Any], Detections3D]]

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the folder or files of an export; `options` are the backend's, such as `threads`."""
        super().__init__()
        self.files = files = {}
        for path in export_files(paths, self.graphs):
            if path.stem in files:
                raise ModelFileError(f'{files[path.stem]}, {path}: both are {path.name}; pass one of them')
            files[path.stem] = path
        if missing := [f'{name}.onnx' for name in self.graphs if name not in files]:
            raise ModelFileError(
                f'{", ".join(map(str, files.values()))}: got no {" and no ".join(missing)}; expected '
                f'{"both" if len(self.graphs) == 2 else "all"} files of one export'
            )
        self.head = self.opened(engine, files['head'], options)
        self.metadata = self.head.metadata
        opens = PillarsOnnx if getattr(self.metadata.postprocess, 'points', None) == PILLARS else ScnOnnx
        self.backbone = self.enter_context(opens(files['backbone'], engine=engine, **options))
        props = Metadata.from_props(self.backbone.props, files['backbone'])
        check_forms(files, dict(backbone=props, head=self.metadata), self.family)
        self.seconds = dict.fromkeys((*self.graphs, 'boxes'), 0.0)

    @property
    def width(self) -> int:
        return int(self.rule.in_channels)

    def detect(self, points: np.ndarray) -> Detections3D:
        """Boxes of points (P, D) float32, LiDAR frame, best first; points out of range are dropped.

        Raises:
            DataError: another width, not finite, or no point in range.
            InferenceError: the engine failed or gave NaN.
        """
        return self.step(Sweep(points)).detections

    def step(self, sweep: Sweep) -> StepResult:
        tensors = self.before_head(sweep)
        start = time.perf_counter()
        outputs = self.head.infer(dict(bev=tensors['bev']))
        check_finite(outputs, sweep.name or 'sweep')
        start = self.passed('head', start)
        detections = self.boxes_of(outputs)
        self.passed('boxes', start)
        return StepResult(dict(**tensors, **outputs), detections)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        return self.decode(outputs, self.metadata.postprocess)

    def feeds(self, sweep: Sweep) -> dict[str, np.ndarray]:
        """`bev` (1, C, H, W) of a sweep, for calibration."""
        return dict(bev=self.before_head(sweep)['bev'])

    def before_head(self, sweep: Sweep) -> dict[str, np.ndarray]:
        """Outputs before the head, with `bev`."""
        points = check_points(sweep.points, self.width, sweep.name)
        check_in_range(points, self.rule.point_cloud_range, sweep.name)
        start = time.perf_counter()
        bev = self.backbone.step(points=points)
        self.passed('backbone', start)
        return dict(bev=bev)
