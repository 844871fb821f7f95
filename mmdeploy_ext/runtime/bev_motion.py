"""The car's motion between two frames for BEVFormer's bird's-eye view: shift and rotation.

Composed in float64; the graph gets float32. H, W rows and columns of the view; column 0 is at the smallest x,
row 0 at the smallest y, metres of the LiDAR frame: x right, y ahead.

Source: fundamentalvision/BEVFormer 66b65f3, `modules/transformer.py`, lines 122 to 156, and torchvision 0.28,
`transforms/functional.py` (`rotate`) with `nearest`.
"""

import math
from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.base.errors import DataError

CAN_BUS = 18
YAW_RAD, YAW_DEG = 16, 17
ORIENTATIONS = dict(wwww='the real part w of the orientation four times', wxyz='a unit quaternion w, x, y, z')
"""Forms of entries 3 to 6 of a record: of upstream's data set, and of Autoware's node."""
UNIT_TOLERANCE = 1e-3
"""Tolerance of a unit quaternion's length; float32 stays below 1e-6."""
TIE_CELLS = 2e-5
"""Sources this near to a cell's edge may round either way in float32."""


def can_bus_record(
    translation: Sequence[float], rotation: Sequence[float], measured: np.ndarray | None = None
) -> np.ndarray:
    """Record (18,) float64 of the car's motion, as BEVFormer's data set makes it.

    `translation` (m) and `rotation` (unit quaternion w, x, y, z) are of the car in the map; `measured` (18,)
    gives entries 7 to 15, else 0. Entries 3 to 6 are w, w, w, w, as in upstream's training.
    """
    record = np.zeros(CAN_BUS)
    if measured is not None:
        measured = np.asarray(measured, np.float64)
        if measured.shape != (CAN_BUS,) or not np.isfinite(measured[7:16]).all():
            raise DataError(
                f'can_bus of an info: got {measured.tolist()}, expected {CAN_BUS} finite numbers; remove '
                'the entry if the record is unknown'
            )
        record[7:16] = measured[7:16]
    w, x, y, z = (float(number) for number in rotation)
    record[:3], record[3:7] = translation, w
    degrees = math.degrees(math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z))
    degrees += 360 if degrees < 0 else 0
    record[YAW_RAD], record[YAW_DEG] = math.radians(degrees), degrees
    return record


def record_of_pose(ego_pose: np.ndarray) -> np.ndarray:
    """Record of a car by its LiDAR's pose (4, 4) in the map, y ahead; no motion, w four times."""
    ahead, leftward, up = ego_pose[:3, 1], -ego_pose[:3, 0], ego_pose[:3, 2]
    trace = ahead[0] + leftward[1] + up[2]
    heading = math.atan2(ahead[1], ahead[0])
    w = 0.5 * math.sqrt(max(1 + trace, 0.0))
    record = can_bus_record(ego_pose[:3, 3], (math.cos(heading / 2), 0, 0, math.sin(heading / 2)))
    record[3:7] = w
    return record


def orientation_of(record: np.ndarray) -> str:
    """Form of a record's orientation, a key of `ORIENTATIONS`, or ''; four equal numbers are 'wwww'."""
    four = record[3:7]
    if (four == four[0]).all():
        return 'wwww'
    return 'wxyz' if abs(float(np.linalg.norm(four)) - 1) < UNIT_TOLERANCE else ''


def motion_since(can_bus: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """Record (18,) float64 with position and heading in degrees relative to the frame before (None: 0).

    Entries: position x, y, z in the map, m (0 to 2); orientation (3 to 6); acceleration, m/s^2 (7 to 9);
    rotation rate, rad/s (10 to 12); velocity, m/s (13 to 15); heading, rad (16, absolute) and degrees (17).
    The change in degrees is not wrapped, as in training: near +-360 where the heading crosses 0.
    """
    changed = np.array(can_bus, np.float64)
    if previous is None:
        changed[:3] = 0
        changed[YAW_DEG] = 0
        return changed
    changed[:3] -= previous[:3]
    changed[YAW_DEG] -= previous[YAW_DEG]
    return changed


def bev_shift(motion: np.ndarray, extent: Sequence[float]) -> np.ndarray:
    """Motion (2,) float64 of the car, x right and y ahead, in shares of the view's sides (`extent`, m).

    Static objects move by the negative.
    """
    dx, dy, yaw = motion[0], motion[1], motion[YAW_RAD]
    sine, cosine = math.sin(yaw), math.cos(yaw)
    return np.array([(dx * sine - dy * cosine) / extent[0], (dx * cosine + dy * sine) / extent[1]])


def bev_rotation(degrees: float, center: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Matrix (2, 3) float32 from cells (x, y, 1), from the view's middle, to x, y in -1..1 of the last view.

    Positive degrees turn counter-clockwise with row 0 on top. `center` is x, y in cells from the first
    corner; `size` is H, W. Rounded as in torchvision: in cells, then divided by half the sides.
    """
    height, width = size
    angle = math.radians(-degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = center[0] - width * 0.5, center[1] - height * 0.5
    matrix = np.array(
        [
            [cosine, sine, -x * cosine - y * sine + x],
            [-sine, cosine, x * sine - y * cosine + y],
        ]
    ).astype(np.float32)
    half = np.array([[0.5 * width], [0.5 * height]], np.float32)
    return matrix / half


def rotation_ties(degrees: float, center: Sequence[float], size: tuple[int, int]) -> int:
    """Number of cells of a rotated view with a source within `TIE_CELLS` of an edge; a proof notes it."""
    height, width = size
    angle = math.radians(-degrees)
    x = np.arange(width) + 0.5 - center[0]
    y = (np.arange(height) + 0.5 - center[1])[:, None]
    cosine, sine = math.cos(angle), math.sin(angle)
    columns, rows = cosine * x + sine * y + center[0], -sine * x + cosine * y + center[1]
    is_near, is_inside = False, True
    for places, cells in ((columns, width), (rows, height)):  # cell 0 is from 0 to 1
        is_near |= np.abs(places - np.round(places)) < TIE_CELLS
        is_inside &= (places > -TIE_CELLS) & (places < cells + TIE_CELLS)
    return int((is_near & is_inside).sum())
