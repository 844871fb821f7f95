"""Points to bird's-eye view by a network of pillars: voxels with their points in, one graph of an ONNX file.

Glossary: P points, D values per point, N voxels, M points of a voxel, C channels, H, W bird's-eye view.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import damaged
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.preprocess.points import assigned, pillars

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

PILLARS = 'pillars'
"""What post-processing facts of such files say of `points`; those of sparse encoders say nothing."""
INPUTS = ('voxels', 'num_points', 'coors')
"""Of the graph: the points of each voxel, how many there are, and the voxel's place."""
DYNAMIC_INPUTS = ('points', 'rows', 'coors')
"""Where voxels hold all their points: those in range, the voxel of each, and the voxels' places."""


class PillarsOnnx(contextlib.ExitStack):
    """One file of pillars, written by `pytorch2onnx.py`, on any engine.

    Attributes:
        rule: how points become voxels.
        props: `metadata_props` of the file.
    """

    def __init__(self, path: str | Path, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the file; errors and arguments as of `LidarOnnx`."""
        super().__init__()
        options = {**BACKENDS[engine].shared, **options}
        self.session = self.enter_context(build_backend(engine, str(path), **options))
        self.rule, self.props = self.session.metadata.preprocess, self.session.metadata.to_props()
        axes = {tensor.name: tensor.axes for tensor in self.session.spec.inputs}
        points = axes.get(INPUTS[0], ())[1:2]
        if self.rule.mode == 'hard' and points and points[0] != self.rule.max_points:
            problem = f'max_points is {self.rule.max_points}, {INPUTS[0]!r} has {points[0]} of a voxel'
            raise damaged(path, 'preprocess', problem)

    def step(self, points: np.ndarray) -> np.ndarray:
        """Return the bird's-eye view (1, C, H, W) float32 of one sweep.

        Args:
            points: (P, D) in metres, LiDAR frame; those outside the range are left out.

        Raises:
            PointsError: points of another width, or not finite.
            InferenceError: the engine failed.
        """
        if self.rule.mode == 'dynamic':
            fed = dict(zip(DYNAMIC_INPUTS, assigned(points, self.rule), strict=True))
        else:
            fed = dict(zip(INPUTS, pillars(points, self.rule), strict=True))
        return self.session.infer(fed)['bev']
