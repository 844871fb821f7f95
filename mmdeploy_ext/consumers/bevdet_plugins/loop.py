"""A file of BEVDet's TensorRT converter as a stream, its plug-in in numpy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.bevdet_plugins.tables import intervals, point_cells
from mmdeploy_ext.consumers.plugins.bevdet_kernels import KERNELS
from mmdeploy_ext.consumers.plugins.kernels import open_with_plugins
from mmdeploy_ext.families.bevdet.runtime import BevDetOnnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.frames import Frame, StreamState


class PoolOnnx(BevDetOnnx):
    """The file with the plug-in; intervals of a rig are kept until its calibration changes."""

    build = staticmethod(functools.partial(open_with_plugins, kernels=KERNELS))
    _rig: tuple[bytes, dict[str, np.ndarray]] = (b'', {})

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        return dict(img=frame.images, **self.rig_tables(super().feeds_of(frame, memory)))

    def rig_tables(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the plug-in's tables for the calibration among inputs of the portable graph."""
        matrices = feeds['sensor2keyego'], feeds['intrinsics']
        key = b''.join(matrix.tobytes() for matrix in matrices)
        if key != self._rig[0]:
            self._rig = key, self.tables(*matrices)
        return self._rig[1]

    def tables(self, sensor2keyego: np.ndarray, intrinsics: np.ndarray) -> dict[str, np.ndarray]:
        facts, crop = self.metadata.postprocess, self.rule.crop_matrix().astype(np.float64)
        return intervals(facts, point_cells(facts, sensor2keyego, intrinsics, crop))

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        outputs = super().run(frame, memory)
        names = self.metadata.postprocess.output_names
        return dict(zip(names, outputs.values(), strict=True))
