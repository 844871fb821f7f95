"""Pictures of the generated drive, by casting a ray per pixel against the ground and every box."""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np

from mmdeploy_ext.runtime.frames import invert_pose
from mmdeploy_ext.synthetic.nuscenes_rig import Sensor, pose_matrix
from mmdeploy_ext.synthetic.nuscenes_world import Thing, World

GROUND_CELL_M = 0.12
HAZE_M = 90.0
NEAR_M = 0.1
_LIGHT = np.array([[0.62, 1.0], [0.74, 0.84], [0.4, 0.95]], np.float32)
"""By axis x, y, z: light on the side of its lower and of its upper end."""
_PERIOD_M = dict(
    car=1.0, truck=1.4, trailer=1.3, bus=1.5, construction_vehicle=1.1,
    bicycle=0.4, motorcycle=0.5, pedestrian=0.5, traffic_cone=0.4, barrier=0.7,
)  # fmt: skip


def ray_box(
    origin: np.ndarray, rays: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersect rays with a box around the origin (slab method).

    All begin at `origin` (3,) and go along `rays` (n, 3) of any length, in the frame of the box of half sizes
    `half` (3,). Returned are (n,) bool whether the ray enters the box, (n,) in multiples of the ray where it
    does, (n,) int the axis 0..2 across whose face it enters.
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
    """Give the (4, 4) box-to-frame matrix of every object; x of a box is its length, z its height."""
    inverse = invert_pose(frame_to_global)
    return [inverse @ pose_matrix(*thing.pose(time_s), z=thing.wlh[2] / 2) for thing in things]


def half_sizes(thing: Thing) -> np.ndarray:
    """Give half the length, width and height (3,), along x, y and z of the box."""
    return thing.wlh[[1, 0, 2]] / 2


@dataclass(frozen=True)
class Lens:
    """What does not change from picture to picture of one camera.

    `rays` (H, W, 3) float32 in the camera frame with z = 1, so that a multiple of one is a depth in m;
    `ground` (H, W, 2) where they meet the ground in the ego frame, at `depth` (H, W), inf above the horizon;
    `up` (H, W) sine of the elevation, `bearing` (H, W) in the ego frame.
    """

    sensor: Sensor
    rays: np.ndarray
    ground: np.ndarray
    depth: np.ndarray
    up: np.ndarray
    bearing: np.ndarray


def make_lens(sensor: Sensor, width: int, height: int) -> Lens:
    """Prepare a camera for pictures of one size; pixel (0, 0) is the centre of the first one."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1).astype(np.float64)
    rays = pixels @ np.linalg.inv(sensor.intrinsic).T
    ahead = rays @ sensor.to_ego[:3, :3].T
    with np.errstate(divide='ignore'):
        depth = np.where(ahead[..., 2] < -1e-3, -sensor.to_ego[2, 3] / ahead[..., 2], np.inf)
    ground = sensor.to_ego[:2, 3] + ahead[..., :2] * np.where(np.isfinite(depth), depth, 0)[..., None]
    up = ahead[..., 2] / np.linalg.norm(ahead, axis=-1)
    single = (array.astype(np.float32) for array in (rays, ground, depth, up))
    return Lens(sensor, *single, np.arctan2(ahead[..., 1], ahead[..., 0]).astype(np.float32))


@dataclass(frozen=True)
class Scenery:
    """Ground, sky and skyline of one scene, BGR."""

    tile: np.ndarray
    skyline: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray


def make_scenery(rng: np.random.Generator, night: bool) -> Scenery:
    """Draw asphalt with brighter slabs, and houses around the horizon; all of little colour."""
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
    """Bound the pixels of a box whose corners (8, 3) are in the camera frame; None when it is out of view."""
    if (corners[:, 2] < NEAR_M).all():
        return None
    if (corners[:, 2] < NEAR_M).any():
        return slice(0, height), slice(0, width)
    points = corners @ intrinsic.T
    points = points[:, :2] / points[:, 2:]
    left, top = np.maximum(np.floor(points.min(0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(0)) + 1, (width, height)).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _wave(points: np.ndarray, period: float) -> np.ndarray:
    return (np.floor(points * (2 / period)).astype(np.int32) & 1).astype(np.float32)


def _pattern(thing: Thing, points: np.ndarray) -> np.ndarray:
    """Give 0 or 1 for points (n, 3) on the surface, in m from the middle of the box."""
    period = _PERIOD_M[thing.kind.name]
    vertical, horizontal = _wave(points[:, 0] + points[:, 1], period), _wave(points[:, 2], period)
    return {
        'plain': np.zeros_like(vertical),
        'vertical': vertical,
        'horizontal': horizontal,
        'checker': np.abs(vertical - horizontal),
    }[thing.kind.pattern]


def paint(thing: Thing, points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Colour the surface of an object so that class and heading can be told.

    Points (n, 3) on it are in m from the middle of the box, `axis` (n,) is the one across whose face each
    lies. Returned is (n, 3) float32 BGR: the hue of the class, everywhere; the front end bright, the rear
    dark at the foot.
    """
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
class View:
    """A picture `image` (H, W, 3) uint8 BGR and, per object, its `visible` and its `whole` pixels (n,)."""

    image: np.ndarray
    visible: np.ndarray
    whole: np.ndarray


def _draw_boxes(
    lens: Lens, boxes: list[np.ndarray], things: list[Thing], image: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    height, width = depth.shape
    nearest = np.full((height, width), -1, np.int32)
    whole = np.zeros(len(things), int)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)
    for index, (thing, box) in enumerate(zip(things, boxes, strict=True)):
        half = half_sizes(thing)
        region = _region((signs * half) @ box[:3, :3].T + box[:3, 3], lens.sensor.intrinsic, width, height)
        if region is None:
            continue
        rays = lens.rays[region].reshape(-1, 3) @ box[:3, :3].astype(np.float32)
        origin = (-box[:3, 3] @ box[:3, :3]).astype(np.float32)
        hit, distance, axis = ray_box(origin, rays, half.astype(np.float32))
        whole[index] = hit.sum()
        hit &= distance < depth[region].reshape(-1)
        rows, columns = np.nonzero(hit.reshape(depth[region].shape))
        rows, columns = rows + region[0].start, columns + region[1].start
        image[rows, columns] = paint(thing, origin + rays[hit] * distance[hit, None], axis[hit])
        depth[rows, columns] = distance[hit]
        nearest[rows, columns] = index
    return np.bincount(nearest[nearest >= 0], minlength=len(things)), whole


def _expose(
    image: np.ndarray, depth: np.ndarray, world: World, channel: str, dropped: int, rng: np.random.Generator
) -> np.ndarray:
    """Light, sensor noise, and the drop-outs: nearly black, or washed out."""
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
) -> View:
    """Take a picture of the objects; the ego is where it is at `time_s`.

    `dropped` is 0, or the kind of drop-out (`World.dropped`); pixels are counted as if there were none.
    """
    xy, yaw = world.drive.pose(time_s)
    boxes = boxes_in(pose_matrix(xy, float(yaw)) @ lens.sensor.to_ego, things, time_s)
    image, depth = _background(lens, scenery, xy, float(yaw)), lens.depth.copy()
    visible, whole = _draw_boxes(lens, boxes, things, image, depth)
    clear = np.where(np.isfinite(depth), np.exp(-depth / HAZE_M), 1)[..., None]
    image = image * clear + scenery.horizon * (1 - clear)
    return View(_expose(image, depth, world, lens.sensor.channel, dropped, rng), visible, whole)
