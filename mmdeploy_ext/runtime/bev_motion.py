"""How the car moved between two frames, as a bird's-eye view of BEVFormer takes it: shift and rotation.

Both are composed in float64 outside of a graph; the graph gets their float32 numbers. No torch.

Glossary: H, W rows and columns of the bird's-eye view. Column 0 is at the smallest x, row 0 at the smallest
y, in metres of the LiDAR frame: x to the right, y ahead.

Source of the formulas: fundamentalvision/BEVFormer 66b65f3, `modules/transformer.py`, lines 122 to 156, and
torchvision 0.28, `transforms/functional.py` (`rotate`) with `nearest`.
"""

import math
from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.core.errors import DataError

CAN_BUS = 18
"""Numbers of a record of the car's motion, see `motion_since`."""
YAW_RAD, YAW_DEG = 16, 17
"""Where a record has the heading of the car in the map, in radians and in degrees."""
ORIENTATIONS = dict(wwww='the real part w of the orientation four times', wxyz='a unit quaternion w, x, y, z')
"""What entries 3 to 6 of a record may be. Upstream's data set makes the former, Autoware's node the
latter."""
UNIT_TOLERANCE = 1e-3
"""Largest difference of a unit quaternion's length from 1; float32 records stay below 1e-6."""
TIE_CELLS = 2e-5
"""A source as near as this to the edge between two cells may be rounded to either by right float32 code: its
coordinates, up to 100 cells, have steps of 8e-6 cells."""


def can_bus_record(
    translation: Sequence[float], rotation: Sequence[float], measured: np.ndarray | None = None
) -> np.ndarray:
    """Return a record of the car's motion, see `motion_since`, as BEVFormer's data set makes it.

    Args:
        translation: of the car in the map, m.
        rotation: of the car in the map, a unit quaternion w, x, y, z.
        measured: a record (18,) of the CAN bus, whose entries 7 to 15 are taken; None: they are 0, as in
            scenes without a record.

    Returns:
        (18,) float64. Entries 3 to 6 are w, w, w, w, not the quaternion: upstream's data set assigns it to
        four numbers, which takes its real part for each, and the published weights were trained so.

    Raises:
        DataError: `measured` is no record of finite numbers.
    """
    record = np.zeros(CAN_BUS)
    if measured is not None:
        measured = np.asarray(measured, np.float64)
        if measured.shape != (CAN_BUS,) or not np.isfinite(measured[7:16]).all():
            raise DataError(
                f'can_bus of an info: got {measured.tolist()}, expected {CAN_BUS} finite numbers; take the '
                f'entry out if the record is not known'
            )
        record[7:16] = measured[7:16]
    w, x, y, z = (float(number) for number in rotation)
    record[:3], record[3:7] = translation, w
    degrees = math.degrees(math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z))
    degrees += 360 if degrees < 0 else 0
    record[YAW_RAD], record[YAW_DEG] = math.radians(degrees), degrees
    return record


def record_of_pose(ego_pose: np.ndarray) -> np.ndarray:
    """Return the record of a car whose LiDAR, with y ahead as nuScenes', is at a pose (4, 4) in the map.

    Accelerations, rates and velocities are 0; entries 3 to 6 are w four times.
    """
    ahead, leftward, up = ego_pose[:3, 1], -ego_pose[:3, 0], ego_pose[:3, 2]
    trace = ahead[0] + leftward[1] + up[2]
    heading = math.atan2(ahead[1], ahead[0])
    w = 0.5 * math.sqrt(max(1 + trace, 0.0))
    record = can_bus_record(ego_pose[:3, 3], (math.cos(heading / 2), 0, 0, math.sin(heading / 2)))
    record[3:7] = w
    return record


def orientation_of(record: np.ndarray) -> str:
    """Return how a record (18,) has the orientation, a key of `ORIENTATIONS`; '' if it is neither of them.

    Four equal numbers are 'wwww', also if they are a unit quaternion.
    """
    four = record[3:7]
    if (four == four[0]).all():
        return 'wwww'
    return 'wxyz' if abs(float(np.linalg.norm(four)) - 1) < UNIT_TOLERANCE else ''


def motion_since(can_bus: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """Return a record in which position and heading in degrees are what they changed by since a frame.

    A record has 18 numbers: position x, y, z in the map, m (0 to 2); orientation (3 to 6); acceleration,
    m/s^2 (7 to 9); rotation rate, rad/s (10 to 12); velocity, m/s (13 to 15); heading in rad (16) and in
    degrees (17), from 0 to a whole turn.

    Args:
        can_bus: the record of this frame (18,).
        previous: the record of the frame before; None at the first frame of a scene, whose changes are 0.

    Returns:
        (18,) float64. The heading in radians stays absolute. Its change in degrees is not wrapped: it is near
        360 or -360 where the heading crosses 0, the x axis of the map, as the model saw it in its training.
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
    """Return the way of the car, x to its right and y ahead as it stands now, in shares of the view's sides.

    A cell finds itself in the last view at its own place plus this; what stands still has moved by the
    negative.

    Args:
        motion: record of `motion_since`.
        extent: width and height of the view, m.

    Returns:
        (2,) float64.
    """
    dx, dy, yaw = motion[0], motion[1], motion[YAW_RAD]
    sine, cosine = math.sin(yaw), math.cos(yaw)
    return np.array([(dx * sine - dy * cosine) / extent[0], (dx * cosine + dy * sine) / extent[1]])


def bev_rotation(degrees: float, center: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the matrix by which `rotated_cells` finds the source of every cell.

    It takes the centre of a cell, (x, y, 1) in cells from the middle of the view, to its source, x and y in
    -1..1 of the last view. Positive degrees turn the view counter-clockwise as a picture with row 0 on top:
    clockwise as seen from above, as what stands still does if the car turns to the left.

    Args:
        degrees: by how much the heading has changed, `motion[YAW_DEG]`.
        center: x and y of the point about which it turns, cells from the first corner.
        size: H and W.

    Returns:
        (2, 3) float32, rounded where torchvision rounds: the matrix in cells, then its quotients by half the
        sides.
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
    """Return how many cells of a rotated view have their source within `TIE_CELLS` of the edge of a cell.

    Right implementations may copy one or the other there, so that a proof names the number in its notes; it
    allows no more of a difference for it. For the arguments see `bev_rotation`.
    """
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
