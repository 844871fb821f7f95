"""Samples of mmdet3d's test loader as sweeps, dumps read back, detections as results of the data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.frames import Sweep
from projects.mmdet3d_plugin.common.generated import generated
from projects.mmdet3d_plugin.common.samples import only, result

__all__ = ['dumped', 'generated', 'result', 'sweep']


def sweep(data: Mapping[str, Any]) -> Sweep:
    """Return one collated sample of the test loader (batch 1, one augmentation) as a sweep.

    Raises:
        DataError: there are no points, or more than one sample or augmentation.
    """
    missing = [key for key in ('points', 'img_metas') if key not in data]
    if missing:
        raise DataError(f'the test pipeline gives no {", ".join(missing)}; add them to the keys of Collect3D')
    points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
    return Sweep(
        points=np.ascontiguousarray(points.cpu().numpy(), np.float32),
        name=str(meta.get('sample_idx', '')),
        points_file=str(meta.get('pts_filename', '')),
    )


def dumped(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
    """Return a dumped sweep as it was fed.

    Raises:
        DataError: the dump was cut down to tensors without the points.
    """
    if 'points' not in tensors:
        raise DataError('the dump has no points; dump with tensors=None, or name them too')
    return Sweep(np.ascontiguousarray(tensors['points']), str(manifest.get('frame', '')))
