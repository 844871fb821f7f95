"""LiDAR detectors from points to boxes: the sparse backbone, or pillars, and the dense head on an engine.

Needs numpy and ONNX Runtime, no PyTorch; without numba it is slow. Glossary: P points, D values per point, N
voxels, M points of a voxel, C channels, H, W rows (y) and columns (x) of the bird's-eye view.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.contract.metadata import Metadata, damaged
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.preprocess.points import assigned, pillars
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths

GRAPHS = ('backbone', 'head')
"""Files of one export, by their `form`."""
PILLARS = 'pillars'
"""`points` of the post-processing facts of files of pillars; those of sparse encoders have no such entry."""
INPUTS = ('voxels', 'num_points', 'coors')
"""Inputs of a graph of pillars: the points of each voxel, their number, and the voxel's place."""
DYNAMIC_INPUTS = ('points', 'rows', 'coors')
"""Inputs if voxels hold all their points: points in range, the voxel of each, and the voxels' places."""


class PillarsOnnx(Runtime):
    """The file from pillars to the bird's-eye view of an export, on an engine.

    Attributes:
        session: the engine that runs the file.
        props: the file's metadata, as entries of `metadata_props`.
    """

    def __init__(self, path: str | Path, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the file; errors and arguments as of `LidarOnnx`."""
        super().__init__()
        self.session = self.opened(engine, path, options)
        self.metadata, self.props = self.session.metadata, self.session.metadata.to_props()
        axes = {tensor.name: tensor.axes for tensor in self.session.spec.inputs}
        points = axes.get(INPUTS[0], ())[1:2]
        if self.rule.mode == 'hard' and points and points[0] != self.rule.max_points:
            reason = f'max_points is {self.rule.max_points}, {INPUTS[0]!r} has {points[0]} of a voxel'
            raise damaged(path, 'preprocess', reason)

    def step(self, points: np.ndarray) -> np.ndarray:
        """Return the bird's-eye view (1, C, H, W) float32 of one sweep.

        Args:
            points: (P, D) in metres, LiDAR frame; those outside the range are left out, and those beyond the
                largest numbers of voxels and of points of a voxel, if the rule has such.

        Raises:
            DataError: points of another width, or not finite.
            InferenceError: the engine failed.
        """
        if self.rule.mode == 'dynamic':
            feeds = dict(zip(DYNAMIC_INPUTS, assigned(points, self.rule), strict=True))
        else:
            feeds = dict(zip(INPUTS, pillars(points, self.rule), strict=True))
        return self.session.infer(feeds)['bev']


class LidarOnnx(Runtime):
    """An exported LiDAR detector on ONNX Runtime or OpenVINO: a `Stepper` of sweeps, without a memory.

    Attributes:
        family: registered name, which files have to be of.
        graphs: names of the files of one export.
        decode: (outputs of the head by name, the facts of its file) -> boxes, best first.
        backbone: from points to the bird's-eye view, a `ScnOnnx` or a `PillarsOnnx`.
        head: the engine from this view to the raw outputs.
        files: name of a graph -> path of its file.
        seconds: spent so far by part: each of `graphs`, such as `backbone` (voxels, rulebook or pillars, and
            network) and `head`, and `boxes`.
    """

    family: ClassVar[str]
    graphs: ClassVar[tuple[str, ...]] = GRAPHS
    decode: ClassVar[Callable[[Mapping[str, np.ndarray], Any], Detections3D]]

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its files, which are known by their names, those of `graphs`.
            engine: registered name of the backend.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, there twice, of another model family, or not of the same
                export.
            EngineError: the engine is not here.
            ConfigError: no such engine, or one without these options.
        """
        super().__init__()
        self.files = files = {}
        for path in export_files(paths, self.graphs):
            if path.stem in files:
                raise ModelFileError(f'{files[path.stem]}, {path}: both are {path.name}; give one of them')
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
        """D, values per point."""
        return int(self.rule.in_channels)

    def detect(self, points: np.ndarray) -> Detections3D:
        """Return the boxes of one sweep in the LiDAR frame, best first.

        Args:
            points: (P, D) float32, LiDAR frame; points outside the range are left out.

        Raises:
            DataError: points of another width or not finite, no point, or none in range.
            InferenceError: the engine failed or gave NaN.
        """
        return self.step(Sweep(points)).detections

    def step(self, sweep: Sweep) -> StepResult:
        """Return the boxes, and as `outputs` those of `before_head` and the head's raw outputs, by name.

        It raises what `detect` raises.
        """
        tensors = self.before_head(sweep)
        start = time.perf_counter()
        outputs = self.head.infer(dict(bev=tensors['bev']))
        check_finite(outputs, sweep.name or 'sweep')
        start = self.passed('head', start)
        detections = self.boxes_of(outputs)
        self.passed('boxes', start)
        return StepResult(dict(**tensors, **outputs), detections)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the head's outputs, best first."""
        return self.decode(outputs, self.metadata.postprocess)

    def feeds(self, sweep: Sweep) -> dict[str, np.ndarray]:
        """Return the head's input of a sweep, `bev` (1, C, H, W), for its calibration.

        It raises what `detect` raises.
        """
        return dict(bev=self.before_head(sweep)['bev'])

    def before_head(self, sweep: Sweep) -> dict[str, np.ndarray]:
        """Return outputs of the files before the head's, by name, with `bev`; raises what `detect` raises."""
        points = check_points(sweep.points, self.width, sweep.name)
        check_in_range(points, self.rule.point_cloud_range, sweep.name)
        start = time.perf_counter()
        bev = self.backbone.step(points=points)
        self.passed('backbone', start)
        return dict(bev=bev)
