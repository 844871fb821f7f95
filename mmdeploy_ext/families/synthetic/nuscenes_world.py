"""The world of one scene of the generated drive: ego motion and objects."""

import math
from dataclasses import dataclass

import numpy as np

KEY_FRAME_S = 0.5
"""Seconds between two key frames."""
STEP_S = 0.01
"""Seconds of a step of the simulation."""
START_XY = (950.0, 250.0)
"""Place of a scene's start, +-30 m along each axis, m, inside nuScenes' maps."""
MIN_ACTIVE, MAX_ACTIVE = 7, 13
"""Objects around the ego in every key frame, as far as there is room."""
MAX_PROPOSALS = 600
"""Tried objects of a scene."""
EGO_CIRCLES = ((-0.2, 1.15), (1.4, 1.15), (3.0, 1.15))
"""(x in the ego frame, radius) in m of circles without other objects."""


@dataclass(frozen=True)
class ThingKind:
    """One detection class: sizes and distances in m, speeds in m/s, `hue` in degrees."""

    name: str
    category: str
    wlh: tuple[float, float, float]
    hue: int
    pattern: str
    near: float
    far: float
    horizon: float
    moving_share: float
    speeds: tuple[float, float]


KINDS = (
    ThingKind('car', 'vehicle.car', (1.95, 4.62, 1.73), 0, 'plain', 5, 13, 16, 0.5, (1, 4)),
    ThingKind('truck', 'vehicle.truck', (2.51, 6.94, 2.84), 252, 'vertical', 6, 14, 18, 0.4, (1, 4)),
    ThingKind('trailer', 'vehicle.trailer', (2.90, 12.29, 3.87), 180, 'horizontal', 8, 15, 20, 0.2, (1, 3)),
    ThingKind('bus', 'vehicle.bus.rigid', (2.94, 11.2, 3.47), 108, 'checker', 8, 15, 20, 0.5, (1, 4)),
    ThingKind('construction_vehicle', 'vehicle.construction', (2.73, 6.37, 3.19), 36, 'checker', 6, 13, 17,
              0.2, (1, 3)),
    ThingKind('bicycle', 'vehicle.bicycle', (0.60, 1.70, 1.28), 144, 'vertical', 4, 9, 12, 0.5, (1, 3)),
    ThingKind('motorcycle', 'vehicle.motorcycle', (0.77, 2.11, 1.47), 288, 'horizontal', 4, 9, 12, 0.5,
              (1, 4)),
    ThingKind('pedestrian', 'human.pedestrian.adult', (0.67, 0.73, 1.77), 72, 'plain', 4, 9, 12, 0.7,
              (0.6, 1.8)),
    ThingKind('traffic_cone', 'movable_object.trafficcone', (0.41, 0.41, 1.07), 216, 'horizontal', 4, 8, 11,
              0, (0, 0)),
    ThingKind('barrier', 'movable_object.barrier', (2.53, 0.50, 0.98), 324, 'vertical', 4, 9, 12, 0, (0, 0)),
)  # fmt: skip
"""In mmdet3d's class order."""


@dataclass(frozen=True)
class Drive:
    """Ego poses every `STEP_S`, from 1 s before the first key frame on: `xy` (n, 2), `yaw` (n,)."""

    xy: np.ndarray
    yaw: np.ndarray

    def pose(self, time_s: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return position (..., 2) in m and yaw (...) in radians at seconds of the scene."""
        grid = np.arange(len(self.yaw)) * STEP_S - 1
        x, y = (np.interp(time_s, grid, column) for column in self.xy.T)
        return np.stack([x, y], axis=-1), np.interp(time_s, grid, self.yaw)


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        label: index into `KINDS`.
        wlh: width, length, height, m.
        anchor_s: time of `xy` and `heading`.
        xy: (2,) of its centre, m.
        heading: yaw, radians.
        speed, turn_rate: m/s and radians/s.
        tint: degrees added to the hue, and the value (HSV, 0 to 1).
    """

    label: int
    wlh: np.ndarray
    anchor_s: float
    xy: np.ndarray
    heading: float
    speed: float
    turn_rate: float
    tint: tuple[float, float]

    @property
    def kind(self) -> ThingKind:
        return KINDS[self.label]

    def pose(self, time_s: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return position (..., 2) in m and yaw (...) in radians at seconds of the scene."""
        elapsed_s = np.asarray(time_s, np.float64) - self.anchor_s
        turn = elapsed_s * self.turn_rate
        chord = self.speed * elapsed_s * np.sinc(turn / (2 * math.pi))
        bearing = self.heading + turn / 2
        xy = self.xy + np.stack([np.cos(bearing), np.sin(bearing)], axis=-1) * chord[..., None]
        return xy, self.heading + turn


@dataclass(frozen=True)
class World:
    """The world of one scene.

    Attributes:
        drive: poses of the ego.
        active: (frames, objects) bool, within the horizon in a key frame.
        gain: factor of brightness.
        dropped: (frames, 6) int in the order of `nuscenes_sensors.CAMERAS`: 0 good, 1 dark, 2 glare.
    """

    drive: Drive
    things: tuple[Thing, ...]
    active: np.ndarray
    night: bool
    gain: float
    dropped: np.ndarray


def make_drive(rng: np.random.Generator, frames: int) -> Drive:
    """Draw a drive at 0 to 5 m/s, with turns and stops."""
    duration = frames * KEY_FRAME_S + 2
    knots = np.arange(0, duration + 2.5, 2.5)
    speeds = np.clip(rng.uniform(1, 4) + rng.normal(0, 0.8, len(knots)), 0.3, 5)
    speeds[rng.random(len(knots)) < 0.12] = 0
    rates = rng.choice([0, 0, 0.1, -0.1, 0.25, -0.25], len(knots))
    rates = np.clip(rates, -0.2 * speeds, 0.2 * speeds)
    times = np.arange(0, duration, STEP_S)
    speed, rate = np.interp(times, knots, speeds), np.interp(times, knots, rates)
    yaw = rng.uniform(-math.pi, math.pi) + np.cumsum(rate) * STEP_S
    steps = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1) * speed[:, None] * STEP_S
    return Drive(np.array(START_XY) + rng.uniform(-30, 30, 2) + np.cumsum(steps, axis=0), yaw)


def _circles(thing: Thing, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width, length = thing.wlh[:2]
    short, long = sorted((width, length))
    count = min(max(math.ceil(long / short), 1), 6)
    along = np.linspace(-1, 1, count) * (long - short) / 2 if count > 1 else np.zeros(1)
    xy, yaw = thing.pose(times)
    yaw = yaw if length >= width else yaw + math.pi / 2
    axis = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    return xy[:, None] + along[:, None] * axis[:, None], np.full(count, short * 0.62)


def _ego_circles(drive: Drive, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    xy, yaw = drive.pose(times)
    axis = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    along, radii = (np.array(column) for column in zip(*EGO_CIRCLES, strict=True))
    return xy[:, None] + along[:, None] * axis[:, None], radii + 1.0


def _propose(rng: np.random.Generator, drive: Drive, label: int, time_s: float) -> Thing:
    kind = KINDS[label]
    ego_xy, ego_yaw = drive.pose(time_s)
    distance, bearing = rng.uniform(kind.near, kind.far), rng.uniform(-math.pi, math.pi)
    moving = rng.random() < kind.moving_share
    free = kind.name in ('pedestrian', 'traffic_cone', 'barrier') or (not moving and rng.random() < 0.3)
    offset = rng.uniform(-math.pi, math.pi) if free else rng.choice([0, math.pi]) + rng.normal(0, 0.2)
    return Thing(
        label,
        np.array(kind.wlh) * rng.uniform(0.9, 1.1, 3),
        time_s,
        ego_xy + distance * np.array([math.cos(ego_yaw + bearing), math.sin(ego_yaw + bearing)]),
        float(ego_yaw + offset),
        float(rng.uniform(*kind.speeds)) if moving else 0.0,
        float(rng.normal(0, 0.06)) if moving else 0.0,
        (float(rng.uniform(-6, 6)), float(rng.uniform(0.85, 1.0))),
    )


def _populate(rng: np.random.Generator, drive: Drive, frames: int) -> tuple[list[Thing], np.ndarray]:
    key_times = np.arange(frames) * KEY_FRAME_S
    times = np.arange(-0.25, frames * KEY_FRAME_S, KEY_FRAME_S / 2)
    all_circles = [_ego_circles(drive, times)]
    things, active = [], np.zeros((frames, 0), bool)
    class_counts = rng.random(len(KINDS))
    for _ in range(MAX_PROPOSALS):
        counts = active.sum(1)
        if counts.min() >= MIN_ACTIVE and class_counts.min() >= 1:
            break
        frame = int(rng.choice(np.flatnonzero(counts == counts.min())))
        label = int(class_counts.argmin()) if rng.random() < 0.7 else int(rng.integers(len(KINDS)))
        thing = _propose(rng, drive, label, frame * KEY_FRAME_S)
        offsets = thing.pose(key_times)[0] - drive.pose(key_times)[0]
        present = np.linalg.norm(offsets, axis=-1) < thing.kind.horizon
        circles = _circles(thing, times)
        if (counts + present).max() > MAX_ACTIVE or _collides(circles, all_circles):
            continue
        things.append(thing)
        all_circles.append(circles)
        active = np.concatenate([active, present[:, None]], axis=1)
        class_counts[label] += present.sum()
    return things, active


def _collides(
    circles: tuple[np.ndarray, np.ndarray], all_circles: list[tuple[np.ndarray, np.ndarray]]
) -> bool:
    centres, radii = circles
    for other_centres, other_radii in all_circles:
        distances = np.linalg.norm(centres[:, :, None] - other_centres[:, None], axis=-1)
        if (distances < radii[:, None] + other_radii + 0.25).any():
            return True
    return False


def make_world(rng: np.random.Generator, frames: int, drop_share: float) -> World:
    """Make the world of a scene; equal generators give equal worlds.

    `frames` are key frames at 2 Hz; `drop_share` is the chance, 0 to 1, that a good camera drops out in the
    next one, not in the first.
    """
    drive = make_drive(rng, frames)
    things, active = _populate(rng, drive, frames)
    night = bool(rng.random() < 0.3)
    gain = float(rng.uniform(0.4, 0.6) if night else rng.uniform(0.8, 1.1))
    dropped = np.zeros((frames, 6), int)
    for frame in range(1, frames):
        drops = (rng.random(6) < drop_share) & (dropped[frame - 1] == 0)
        dropped[frame] = drops * rng.choice([1, 1, 2], 6)
    return World(drive, tuple(things), active, night, gain, dropped)
