"""The tables of view pooling of one rig, written for a consumer of CUDA-BEVFusion's files. Needs numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata, read_props
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.bevfusion_det import geometry
from mmdeploy_ext.runtime.bevfusion_det.frames import FAMILY, MATRICES, check_calibration
from mmdeploy_ext.runtime.bevfusion_det.pooling import tables_of
from mmdeploy_ext.runtime.exported import model_files


def read_calibration(path: str | Path) -> dict[str, np.ndarray]:
    """Return the matrices of an .npz file, float32, see `FusedFrame`; DataError where it is none."""
    try:
        with np.load(path) as stored:
            found = {name: np.asarray(stored[name], np.float32) for name in MATRICES if name in stored}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f'{path}: cannot be read; expected an .npz file of {", ".join(MATRICES)}') from error
    return {'lidar_aug_matrix': np.eye(4, dtype=np.float32), **found}


def write_tables(folder: str, calibration: str, output: str) -> dict[str, int]:
    """Write the tables of a rig to an .npz file.

    Args:
        folder: of an export.
        calibration: .npz file of the matrices; without `lidar_aug_matrix` points are not augmented.
        output: see `Tables.save`.

    Returns:
        'points' and 'intervals' of the tables, 'dropped' points, and 'engine_differs': points that
        CUDA-BEVFusion's own float32 puts elsewhere.

    Raises:
        ModelFileError: not there, or not of this family.
        DataError: a calibration that cannot be.
    """
    path = model_files(folder)[0]
    metadata = Metadata.from_props(read_props(path), path)
    metadata.require(path, FAMILY)
    rig = read_calibration(calibration)
    check_calibration(rig, metadata.preprocess.views.num_cameras, calibration)
    view = geometry.View.of(metadata.postprocess['view'])
    cells = geometry.cells(rig, view)
    tables = tables_of(cells, view.shape)
    tables.save(output)
    return dict(
        points=cells.size,
        intervals=len(tables.intervals),
        dropped=int((tables.ranks < 0).sum()),
        engine_differs=int((geometry.engine_cells(rig, view) != cells).sum()),
    )
