"""SparseDrive's frames, with the driver's command."""

from typing import Any

import numpy as np

from mm2onnx_driving.common.instance_data import InstanceData
from mm2onnx_driving.sparsedrive.facts import OUTPUTS
from mm2onnx_driving.sparsedrive.runtime import frame_with_command


def entries(rng: np.random.Generator) -> dict[str, Any]:
    """Return an info's entries for SparseDrive's data set."""
    return dict(
        map_location='generated',
        map_annos={},
        ego_status=rng.uniform(-1, 1, 10),
        gt_ego_fut_cmd=np.eye(3)[rng.integers(3)],
        gt_ego_fut_trajs=np.zeros((6, 2)),
        gt_ego_fut_masks=np.zeros(6),
        gt_boxes=np.zeros((0, 7)),
        gt_names=np.zeros(0, str),
        gt_velocity=np.zeros((0, 2)),
        num_lidar_pts=np.zeros(0, int),
    )


class SparseDriveData(InstanceData):
    compared = OUTPUTS[:-3]
    needed = (*InstanceData.needed, 'command')
    frame_of = staticmethod(frame_with_command)
    entries = staticmethod(entries)
