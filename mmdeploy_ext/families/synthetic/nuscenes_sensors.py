"""Six cameras and a LiDAR as on nuScenes' cars, and their measurements."""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.families.synthetic.nuscenes_world import Thing, World
from mmdeploy_ext.runtime.geometry import invert_pose

_CAMERAS = {
    'CAM_FRONT': (1.70, 0.0, 1.51, 0, 70, 35),
    'CAM_FRONT_RIGHT': (1.55, -0.49, 1.50, -55, 70, 27),
    'CAM_FRONT_LEFT': (1.52, 0.49, 1.51, 55, 70, 43),
    'CAM_BACK': (0.03, 0.0, 1.58, 180, 110, 10),
    'CAM_BACK_LEFT': (1.04, 0.48, 1.59, 110, 70, 3),
    'CAM_BACK_RIGHT': (1.01, -0.48, 1.56, -110, 70, 20),
}
"""x, y, z in the ego frame, m; yaw and horizontal field of view, degrees; lead over the LiDAR, ms."""
CAMERAS = tuple(_CAMERAS)
"""Names of the cameras in the order of mmdet3d's info files."""
LIDAR = 'LIDAR_TOP'
CAMERA_LAG_US = {name: row[5] * 1000 for name, row in _CAMERAS.items()}
"""Camera -> microseconds before the LiDAR."""
_CAMERA_AXES = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
"""Columns: the axes of an unturned camera in the ego frame."""


@dataclass(frozen=True)
class Sensor:
    """A calibrated sensor.

    Attributes:
        channel: e.g. 'CAM_FRONT'.
        to_ego: (4, 4) float64, sensor to ego, metres.
        intrinsic: (3, 3) float64, camera to pixels, or None.
    """

    channel: str
    to_ego: np.ndarray
    intrinsic: np.ndarray | None = None


def pose_matrix(xy: np.ndarray, yaw: float, z: float = 0.0) -> np.ndarray:
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, xy[0]], [sin, cos, 0, xy[1]], [0, 0, 1, z], [0, 0, 0, 1]], float)


def _tilt(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    return Quaternion(axis=axis, degrees=float(rng.uniform(0, degrees))).rotation_matrix


def _to_ego(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    matrix = Quaternion(matrix=rotation, rtol=1e-6, atol=1e-6).normalised.transformation_matrix
    matrix[:3, 3] = translation
    return matrix


def make_rig(rng: np.random.Generator, width: int, height: int) -> dict[str, Sensor]:
    """Draw the sensors of a car, name -> sensor; picture sizes in pixels."""
    rig = {}
    for channel, (x, y, z, yaw, view, _) in _CAMERAS.items():
        turn = Quaternion(axis=[0, 0, 1], degrees=yaw).rotation_matrix
        rotation = turn @ _tilt(rng, 0.6) @ _CAMERA_AXES
        focal = width / 2 / math.tan(math.radians(view) / 2) * rng.uniform(0.99, 1.01)
        centre = (width * rng.uniform(0.495, 0.515), height * rng.uniform(0.535, 0.555))
        intrinsic = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        translation = np.array([x, y, z]) + rng.uniform(-0.015, 0.015, 3)
        rig[channel] = Sensor(channel, _to_ego(rotation, translation), intrinsic)
    turn = Quaternion(axis=[0, 0, 1], degrees=-90).rotation_matrix
    translation = np.array([0.94, 0, 1.84]) + rng.uniform(-0.015, 0.015, 3)
    rig[LIDAR] = Sensor(LIDAR, _to_ego(turn @ _tilt(rng, 1.2), translation))
    return rig


# ---------------------------------------------------------------- pictures


GROUND_CELL_M = 0.12
"""Side of a pixel of `Scenery.tile`."""
HAZE_M = 90.0
"""Depth at which haze leaves 1/e of a colour."""
NEAR_M = 0.1
"""Smallest depth of projected corners."""
_LIGHT = np.array([[0.62, 1.0], [0.74, 0.84], [0.4, 0.95]], np.float32)
"""Light on the two faces across each axis: lower and upper end."""
_PERIOD_M = dict(
    car=1.0, truck=1.4, trailer=1.3, bus=1.5, construction_vehicle=1.1,
    bicycle=0.4, motorcycle=0.5, pedestrian=0.5, traffic_cone=0.4, barrier=0.7,
)  # fmt: skip
"""Class -> period of the pattern on its objects."""


def ray_box(
    origin: np.ndarray, rays: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersect rays with a box around the origin (slab method).

    Args:
        origin: (3,) start of all rays, in the frame of the box.
        rays: (n, 3) directions of any length.
        half: (3,) half sizes of the box.

    Returns:
        (n,) bool: the ray enters from outside; (n,) distance in multiples of the ray; (n,) int axis 0..2 of
            the face.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        inverse = 1 / rays
        lower, upper = (-half - origin) * inverse, (half - origin) * inverse
    x, y, z = np.minimum(lower, upper).T  # axis by axis: five times as fast as reducing over a last axis of 3
    enter = np.maximum(np.maximum(x, y), z)
    axis = np.where(enter == x, 0, np.where(enter == y, 1, 2))
    x, y, z = np.maximum(lower, upper).T
    leave = np.minimum(np.minimum(x, y), z)
    return (enter < leave) & (enter > 0), enter, axis


def boxes_in(frame_to_global: np.ndarray, things: list[Thing], time_s: float) -> list[np.ndarray]:
    """Return the (4, 4) matrix from box to frame of each of `things`.

    A box's axes are along length, width and height, in metres from its middle. `frame_to_global` (4, 4);
    `time_s` since the scene began.
    """
    inverse = invert_pose(frame_to_global)
    return [inverse @ pose_matrix(*thing.pose(time_s), z=thing.wlh[2] / 2) for thing in things]


def half_sizes(thing: Thing) -> np.ndarray:
    return thing.wlh[[1, 0, 2]] / 2


@dataclass(frozen=True)
class Lens:
    """A camera's rays, equal for all pictures.

    Attributes:
        rays: (H, W, 3) float32, z = 1: multiples are depths in m.
        ground: (H, W, 2) x and y, m, ego frame, on the ground; above the horizon the camera's.
        depth: (H, W) of these points, inf above the horizon.
        up: (H, W) sine of the elevation.
        bearing: (H, W) radians in the ego frame, to the left.
    """

    sensor: Sensor
    rays: np.ndarray
    ground: np.ndarray
    depth: np.ndarray
    up: np.ndarray
    bearing: np.ndarray


def make_lens(sensor: Sensor, width: int, height: int) -> Lens:
    """Return a camera's rays for width x height pixels; (0, 0) is the centre of the first pixel."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1).astype(np.float64)
    rays = pixels @ np.linalg.inv(sensor.intrinsic).T
    ego_rays = rays @ sensor.to_ego[:3, :3].T
    with np.errstate(divide='ignore'):
        depth = np.where(ego_rays[..., 2] < -1e-3, -sensor.to_ego[2, 3] / ego_rays[..., 2], np.inf)
    ground = sensor.to_ego[:2, 3] + ego_rays[..., :2] * np.where(np.isfinite(depth), depth, 0)[..., None]
    up = ego_rays[..., 2] / np.linalg.norm(ego_rays, axis=-1)
    bearing = np.arctan2(ego_rays[..., 1], ego_rays[..., 0])
    return Lens(sensor, *(array.astype(np.float32) for array in (rays, ground, depth, up, bearing)))


@dataclass(frozen=True)
class Scenery:
    """Ground, sky and skyline of one scene.

    Attributes:
        tile: (256, 256, 3) float32 BGR 0..255, the ground, repeated.
        skyline: (n,) float32, sine of the roofs' elevation around the horizon, from global x
            counter-clockwise.
        zenith: (3,) BGR of the sky above.
        horizon: (3,) BGR at the horizon, and of the haze.
    """

    tile: np.ndarray
    skyline: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray


def make_scenery(rng: np.random.Generator, night: bool) -> Scenery:
    """Draw asphalt with brighter slabs, and houses around the horizon, in dull colours."""
    coarse = cv2.resize(rng.random((32, 32), dtype=np.float32), (256, 256), interpolation=cv2.INTER_CUBIC)
    fine = rng.random((256, 256), dtype=np.float32)
    grey = 78 + 40 * coarse + 22 * fine
    grey[::64] += 45
    grey[:, ::64] += 45
    tile = grey[..., None] * np.array([1.03, 1.0, 0.97], np.float32)
    skyline = np.repeat(rng.uniform(0.0, 0.14, 60), rng.integers(4, 9, 60)).astype(np.float32)
    zenith = np.array([60, 40, 35] if night else [215, 190, 165], np.float32)
    return Scenery(tile.astype(np.float32), skyline, zenith, zenith * 0.5 + (40 if night else 105))


def _background(lens: Lens, scenery: Scenery, xy: np.ndarray, yaw: float) -> np.ndarray:
    cos, sin = np.float32(math.cos(yaw)), np.float32(math.sin(yaw))
    below = np.isfinite(lens.depth)
    x, y = lens.ground[below].T
    start = (xy % (256 * GROUND_CELL_M)).astype(np.float32)
    column = ((start[0] + cos * x - sin * y) / GROUND_CELL_M).astype(np.int32) & 255
    row = ((start[1] + sin * x + cos * y) / GROUND_CELL_M).astype(np.int32) & 255
    image = scenery.horizon + (scenery.zenith - scenery.horizon) * np.clip(lens.up * 2.5, 0, 1)[..., None]
    houses = len(scenery.skyline)
    house = scenery.skyline[((lens.bearing + yaw) / (2 * math.pi) * houses).astype(np.int32) % houses]
    image = np.where((lens.up < house)[..., None], scenery.horizon * (0.5 + 2.5 * house[..., None]), image)
    image[below] = scenery.tile[row, column]
    return image.astype(np.float32)


def _region(
    corners: np.ndarray, intrinsic: np.ndarray, width: int, height: int
) -> tuple[slice, slice] | None:
    if (corners[:, 2] < NEAR_M).all():
        return None
    if (corners[:, 2] < NEAR_M).any():
        return slice(0, height), slice(0, width)
    points = corners @ intrinsic.T
    points = points[:, :2] / points[:, 2:]
    left, top = np.maximum(np.floor(points.min(0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(0)) + 1, (width, height)).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _pattern(thing: Thing, points: np.ndarray) -> np.ndarray:
    frequency = 2 / _PERIOD_M[thing.kind.name]
    vertical, horizontal = (
        (np.floor(positions * frequency).astype(np.int32) & 1).astype(np.float32)
        for positions in (points[:, 0] + points[:, 1], points[:, 2])
    )
    return {
        'plain': np.zeros_like(vertical),
        'vertical': vertical,
        'horizontal': horizontal,
        'checker': np.abs(vertical - horizontal),
    }[thing.kind.pattern]


def paint(thing: Thing, points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return colours (n, 3) float32 BGR of points (n, 3), m, on faces across `axis` (n,) of the box."""
    hue, value = (thing.kind.hue + thing.tint[0]) % 360 / 360, thing.tint[1]
    base = np.array(colorsys.hsv_to_rgb(hue, 0.92, value)[::-1], np.float32) * 255
    unit = points / half_sizes(thing).astype(np.float32)
    side = (unit[np.arange(len(axis)), axis] > 0).astype(int)
    light = _LIGHT[axis, side] * (1 - 0.32 * _pattern(thing, points))
    light[(unit[:, 2] < -0.72) & (axis != 2)] *= 0.45  # wheels, feet: where the box meets the ground
    light[(unit[:, 0] < -0.55) & (axis != 0)] *= 0.6
    bright = (unit[:, 0] > 0.62) & ((axis != 0) | ((np.abs(unit[:, 1]) < 0.7) & (unit[:, 2] > 0.25)))
    colour = np.where(bright[:, None], base * 0.4 + 150, base)
    return colour * light[:, None]


@dataclass(frozen=True)
class CameraView:
    """A picture of a camera.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        visible: (n,) visible pixels per object.
        projected: (n,) pixels per object, hidden ones included.
    """

    image: np.ndarray
    visible: np.ndarray
    projected: np.ndarray


def _draw_boxes(
    lens: Lens, boxes: list[np.ndarray], things: list[Thing], image: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    height, width = depth.shape
    nearest = np.full((height, width), -1, np.int32)
    projected = np.zeros(len(things), int)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)
    for index, (thing, box) in enumerate(zip(things, boxes, strict=True)):
        half = half_sizes(thing)
        region = _region((signs * half) @ box[:3, :3].T + box[:3, 3], lens.sensor.intrinsic, width, height)
        if region is None:
            continue
        rays = lens.rays[region].reshape(-1, 3) @ box[:3, :3].astype(np.float32)
        origin = (-box[:3, 3] @ box[:3, :3]).astype(np.float32)
        hit, distance, axis = ray_box(origin, rays, half.astype(np.float32))
        projected[index] = hit.sum()
        hit &= distance < depth[region].reshape(-1)
        rows, columns = np.nonzero(hit.reshape(depth[region].shape))
        rows, columns = rows + region[0].start, columns + region[1].start
        image[rows, columns] = paint(thing, origin + rays[hit] * distance[hit, None], axis[hit])
        depth[rows, columns] = distance[hit]
        nearest[rows, columns] = index
    return np.bincount(nearest[nearest >= 0], minlength=len(things)), projected


def _expose(
    image: np.ndarray, depth: np.ndarray, world: World, channel: str, dropped: int, rng: np.random.Generator
) -> np.ndarray:
    light = np.full(depth.shape, world.gain, np.float32)
    if world.night and channel.startswith('CAM_FRONT'):
        light += 0.35 * np.exp(-np.square(depth / 14))
    noise = rng.standard_normal(depth.shape, dtype=np.float32) * (5 if world.night else 3)
    image = image * light[..., None] + noise[..., None]
    if dropped == 1:
        image = image * 0.03 + 4
    elif dropped == 2:
        image = image * 0.04 + 238
    return np.clip(image, 0, 255).astype(np.uint8)


def render(
    lens: Lens,
    scenery: Scenery,
    world: World,
    things: list[Thing],
    time_s: float,
    dropped: int,
    rng: np.random.Generator,
) -> CameraView:
    """Take a picture, with pixel counts of `things`, `time_s` seconds since the scene began.

    `dropped`: see `World.dropped`; it leaves the counts. `rng` is for noise.
    """
    xy, yaw = world.drive.pose(time_s)
    boxes = boxes_in(pose_matrix(xy, float(yaw)) @ lens.sensor.to_ego, things, time_s)
    image, depth = _background(lens, scenery, xy, float(yaw)), lens.depth.copy()
    visible, projected = _draw_boxes(lens, boxes, things, image, depth)
    clarity = np.where(np.isfinite(depth), np.exp(-depth / HAZE_M), 1)[..., None]
    image = image * clarity + scenery.horizon * (1 - clarity)
    return CameraView(_expose(image, depth, world, lens.sensor.channel, dropped, rng), visible, projected)


# ---------------------------------------------------------------- sweeps


BEAMS = 32
ELEVATIONS_DEG = (-30.67, 10.67)
"""Lowest and highest beam, degrees."""
AZIMUTHS = 360
MAX_RANGE_M = 70.0
"""Farthest point, metres."""
RANGE_NOISE_M = 0.01
"""Deviation of distances, metres."""


def measure_sweep(
    sensor: Sensor, world: World, things: list[Thing], time_s: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Measure one revolution of the LiDAR, `time_s` seconds since the scene began.

    `rng` is for noise, which may exceed `MAX_RANGE_M`.

    Returns:
        Points (n, 5) float32 as in nuScenes' .pcd.bin: x y z in m, LiDAR frame, intensity 0..255, ring 0..31
            from below; and points on each of `things`, (objects,) int.
    """
    xy, yaw = world.drive.pose(time_s)
    to_global = pose_matrix(xy, float(yaw)) @ sensor.to_ego
    elevation = np.deg2rad(np.linspace(*ELEVATIONS_DEG, BEAMS))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, AZIMUTHS, endpoint=False)[None]
    directions = [
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.sin(elevation) * np.ones_like(azimuth),
    ]
    rays = np.stack(directions, axis=-1).reshape(-1, 3)  # ring by ring from below
    down = rays @ to_global[2, :3]
    with np.errstate(divide='ignore'):
        distance = np.where(down < 0, -to_global[2, 3] / down, np.inf)
    nearest = np.full(len(rays), -1)
    for index, (thing, box) in enumerate(zip(things, boxes_in(to_global, things, time_s), strict=True)):
        hit, enter, _ = ray_box(-box[:3, 3] @ box[:3, :3], rays @ box[:3, :3], half_sizes(thing))
        hit &= enter < distance
        distance[hit], nearest[hit] = enter[hit], index
    returned = distance < MAX_RANGE_M
    counts = np.bincount(nearest[returned & (nearest >= 0)], minlength=len(things))
    reflectance = np.array([12.0] + [25.0 + 6 * thing.label for thing in things])[nearest[returned] + 1]
    distance = distance[returned] + rng.normal(0, RANGE_NOISE_M, returned.sum())
    ring = np.repeat(np.arange(BEAMS), AZIMUTHS)[returned]
    intensity = np.clip(reflectance + rng.normal(0, 3, returned.sum()), 0, 255)
    points = np.concatenate([rays[returned] * distance[:, None], intensity[:, None], ring[:, None]], axis=1)
    return points.astype(np.float32), counts
