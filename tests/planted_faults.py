"""Faults planted in our own code, so that a fresh export has them too: only its inputs can tell.

Each is one that somebody could make: a wrong constant, axis, sign or default, a case forgotten. What the
PyTorch reference runs stays as it is: modules that both share are faulty only while they are traced, and what
is faulty on both sides is declared as shared.
"""

import planted_anchor3d
import planted_autoware
import planted_bevfusion
import planted_centerpoint
import planted_corner
import planted_dense
import planted_inputs
import planted_masks
import planted_networks
import planted_panoptic
import planted_points
import planted_query
import planted_query_masks
import planted_rtdetr
import planted_solo
import planted_sparse
import planted_streampetr
import planted_two_stage
import planted_yolact
from planting import FAULTS

MODULES = (
    planted_networks,
    planted_inputs,
    planted_dense,
    planted_two_stage,
    planted_masks,
    planted_query,
    planted_query_masks,
    planted_panoptic,
    planted_yolact,
    planted_corner,
    planted_solo,
    planted_rtdetr,
    planted_streampetr,
    planted_points,
    planted_centerpoint,
    planted_anchor3d,
    planted_bevfusion,
    planted_sparse,
    planted_autoware,
)
__all__ = ['FAULTS', 'MODULES']
