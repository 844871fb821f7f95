"""LiDAR detectors from points to boxes: the sparse backbone, or pillars, and the dense head on an engine.

Needs numpy, numba and ONNX Runtime, no PyTorch. Glossary: P points, D values per point, C channels, H, W
bird's-eye view.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.parts.runtime.pillars import PILLARS, PillarsOnnx
from mmdeploy_ext.families.parts.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths

GRAPHS = ('backbone', 'head')
"""Files of one export, by their `form`."""


class LidarOnnx(Runtime):
    """An exported LiDAR detector on ONNX Runtime or OpenVINO: a `Stepper` of sweeps, without a memory.

    Attributes:
        family: registered name, which files have to be of.
        rules: what reads how outputs become boxes, `box_rule`.
        decode: (outputs of the head by name, such a rule) -> boxes, best first.
        seconds: spent so far by part: `backbone` (voxels, rulebook or pillars, and network), `head`, `boxes`.
    """

    family: ClassVar[str]
    rules: ClassVar[Any]
    decode: ClassVar[Callable[[Mapping[str, np.ndarray], Any], Detections3D]]

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its two files.
            engine: registered name of the backend.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another model family, or not of the same export.
            EngineError: the engine is not here.
        """
        super().__init__()
        files = {path.stem: path for path in export_files(paths, GRAPHS)}
        if missing := [f'{name}.onnx' for name in GRAPHS if name not in files]:
            raise ModelFileError(
                f'{", ".join(map(str, files.values()))}: got no {" and no ".join(missing)}; expected both '
                f'files of one export'
            )
        self.head = self.opened(engine, files['head'], options)
        self.metadata = self.head.metadata
        opens = PillarsOnnx if self.metadata.postprocess.get('points') == PILLARS else ScnOnnx
        self.backbone = self.enter_context(opens(files['backbone'], engine=engine, **options))
        props = Metadata.from_props(self.backbone.props, files['backbone'])
        check_forms(files, dict(backbone=props, head=self.metadata), self.family)
        self.box_rule = self.rules.from_json(self.metadata.postprocess, files['head'])
        self.box_rule.check_outputs(self.metadata.spec, files['head'])
        self.seconds = dict.fromkeys((*GRAPHS, 'boxes'), 0.0)

    @property
    def width(self) -> int:
        """D, values per point."""
        return int(self.rule.in_channels)

    def detect(self, points: np.ndarray) -> Detections3D:
        """Return the boxes of one sweep in the LiDAR frame, best first.

        Args:
            points: (P, D) float32, LiDAR frame; points outside the range are left out.

        Raises:
            DataError: points of another width, NaN, or none in range.
            InferenceError: the engine failed or gave NaN.
        """
        return self.step(Sweep(points)).detections

    def step(self, sweep: Sweep) -> StepResult:
        """Detect, and keep the bird's-eye view and the head's raw outputs; raises what `detect` raises."""
        fed = self.feeds(sweep)
        start = time.perf_counter()
        outputs = self.head.infer(fed)
        check_finite(outputs, sweep.name or 'sweep')
        start = self.passed('head', start)
        detections = self.boxes_of(outputs)
        self.passed('boxes', start)
        return StepResult(dict(**fed, **outputs), detections)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes that outputs of the head stand for, best first."""
        return self.decode(outputs, self.box_rule)

    def feeds(self, sweep: Sweep) -> dict[str, np.ndarray]:
        """Return what the head's graph takes of a sweep, `bev` (1, C, H, W); raises what `detect` raises."""
        points = check_points(sweep.points, self.width, sweep.name)
        check_in_range(points, self.rule.point_cloud_range, sweep.name)
        start = time.perf_counter()
        bev = self.backbone.step(points=points)
        self.passed('backbone', start)
        return dict(bev=bev)
