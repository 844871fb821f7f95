"""CenterPoint from points to boxes: the sparse backbone and the dense head on ONNX Runtime.

    runtime = CenterPointOnnx('work_dirs/centerpoint')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.step(read_points('sweep.pcd.bin', runtime.width))

Needs numpy, numba and ONNX Runtime, no PyTorch. Glossary: P points, D values per point, C channels, H, W
bird's-eye view.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.runtime.centerpoint.boxes import BoxRule, decode
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.runtime.scn.model import ScnOnnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Sweep

FAMILY = 'centerpoint'
GRAPHS = ('backbone', 'head')
"""Files of one export, by their `form`."""


class CenterPointOnnx:
    """An exported CenterPoint on ONNX Runtime or OpenVINO.

    Attributes:
        metadata: of the head's file.
        box_rule: how its outputs become boxes.
        seconds: spent so far by part: `backbone` (voxels, rulebook and network), `head`, `boxes`.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], *, engine: str = 'OnnxRuntimeBackend', **options: Any
    ) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its two files.
            engine: registered name of the backend.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another model family, or not of the same export.
            EngineError: the engine is not here.
        """
        files = export_files(paths)
        self.backbone = ScnOnnx(files['backbone'], engine=engine, **options)
        # two thread pools on the same cores: one that still spins slows the other
        self.head = build_backend(engine, str(files['head']), **{**BACKENDS[engine].shared, **options})
        self.head.activate()
        self.metadata = self.head.metadata
        check_same_export(files, self.backbone.props, self.metadata)
        self.box_rule = BoxRule.from_json(self.metadata.postprocess, files['head'])
        self.seconds = dict.fromkeys((*GRAPHS, 'boxes'), 0.0)

    @property
    def rule(self) -> VoxelRule:
        """How points become voxels."""
        return self.metadata.preprocess

    @property
    def width(self) -> int:
        """D, values per point."""
        return int(self.rule.in_channels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.metadata.classes

    def step(self, points: np.ndarray) -> Detections3D:
        """Detect in one sweep.

        Args:
            points: (P, D) float32, LiDAR frame; points outside the range are left out.

        Returns:
            Boxes in the LiDAR frame, best first.

        Raises:
            DataError: points of another width, NaN, or none in range.
            InferenceError: the engine failed or gave NaN.
        """
        return self.run(points).detections

    def run(self, points: np.ndarray, name: str = '') -> StepResult:
        """Detect, and keep the bird's-eye view and the head's raw outputs; what `step` raises."""
        points = check_points(points, self.width, name)
        check_in_range(points, self.rule.point_cloud_range, name)
        start = time.perf_counter()
        bev = self.backbone.step(points=points)
        start = self._passed('backbone', start)
        outputs = self.head.infer(dict(bev=bev))
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise InferenceError(f'{name or "sweep"}: the network gave NaN or infinity')
        start = self._passed('head', start)
        detections = decode(outputs, self.box_rule)
        self._passed('boxes', start)
        return StepResult(dict(bev=bev, **outputs), detections)

    def _passed(self, part: str, start: float) -> float:
        now = time.perf_counter()
        self.seconds[part] += now - start
        return now

    def stepper(self) -> SweepStepper:
        """Return this runtime as a `Stepper` of sweeps, for proofs and test loops."""
        return SweepStepper(self)

    def close(self) -> None:
        """Close the sessions."""
        self.backbone.close()
        self.head.deactivate()

    def __enter__(self) -> Self:
        """Nothing to do: the files are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class SweepStepper:
    """`CenterPointOnnx` as a `Stepper`, without a memory.

    Attributes:
        runtime: the one that runs.
    """

    state = None
    fed_bytes = None

    def __init__(self, runtime: CenterPointOnnx) -> None:
        """Keep the runtime."""
        self.runtime = runtime

    def graph_seconds(self) -> dict[str, float]:
        """Return the seconds that were spent in each part so far; see `CenterPointOnnx.seconds`."""
        return dict(self.runtime.seconds)

    def __enter__(self) -> Self:
        """Nothing to do: the files are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the runtime."""
        self.runtime.close()

    def reset(self) -> None:
        """Nothing to do: there is no memory."""

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep."""
        return self.runtime.run(sweep.points, sweep.name)


def export_files(paths: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Return both files of an export by name, `backbone` and `head`.

    Raises:
        ModelFileError: one is missing.
    """
    if isinstance(paths, str | Path):
        if not Path(paths).is_dir():
            raise ModelFileError(f'{paths}: no such folder; export it with tools/deployment/pytorch2onnx.py')
        paths = [Path(paths) / f'{name}.onnx' for name in GRAPHS]
    found = {Path(path).stem: Path(path) for path in paths}
    missing = [name for name in GRAPHS if name not in found]
    if missing:
        raise ModelFileError(
            f'{", ".join(map(str, paths))}: got no {" and no ".join(f"{name}.onnx" for name in missing)}; '
            f'expected both files of one export'
        )
    return found


def check_same_export(files: Mapping[str, Path], backbone: Mapping[str, str], head: Metadata) -> None:
    """Refuse files of another family, exchanged files, and files of two exports.

    Args:
        files: of `export_files`.
        backbone: `metadata_props` of its file.
        head: the same of the head's.

    Raises:
        ModelFileError: names the file.
    """
    other = Metadata.from_props(backbone, files['backbone'])
    for name, metadata in (('backbone', other), ('head', head)):
        metadata.require(files[name], FAMILY, (name,))
    for field in ('checkpoint_sha256', 'config_sha256', 'options'):
        if getattr(other, field) != getattr(head, field):
            raise ModelFileError(
                f'{files["head"]}: its {field} is not that of {files["backbone"]}; both files have to be of '
                f'one export: export them again into one folder'
            )
