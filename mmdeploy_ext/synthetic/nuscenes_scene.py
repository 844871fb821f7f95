"""Writes one scene of the generated drive: its pictures and sweeps, and its share of every table."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mmdeploy_ext.synthetic import nuscenes_tables as tables
from mmdeploy_ext.synthetic.nuscenes_lidar import sweep
from mmdeploy_ext.synthetic.nuscenes_render import Lens, Scenery, make_lens, make_scenery, render
from mmdeploy_ext.synthetic.nuscenes_rig import CAMERA_LAG_US, CAMERAS, LIDAR, Sensor, make_rig
from mmdeploy_ext.synthetic.nuscenes_world import KEY_FRAME_S, World, make_world
from mmdeploy_ext.synthetic.staging import write_jpeg

JPEG_QUALITY = 90
FIRST_TIMESTAMP_US = 1_531_000_000_000_000
SCENE_GAP_US = 600_000_000
MIN_PIXELS_SHARE = 1e-4
"""Objects of fewer pixels count as not seen, as a share of one picture's pixels."""
SEEN_FOR_FRAMES = 2
"""An object that is hidden now stays annotated when it was seen in one of so many key frames before."""


@dataclass(frozen=True)
class Options:
    """The parameters of a set.

    `image_size` is (W, H) in px, `sweeps` counts LiDAR sweeps between two key frames, `drop_share` is the
    chance that a good camera drops out in the next key frame.
    """

    train_scenes: int = 32
    val_scenes: int = 5
    frames: int = 24
    seed: int = 0
    image_size: tuple[int, int] = (352, 198)
    sweeps: int = 0
    drop_share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan(Options):
    """The parameters of one scene. `number` counts the scenes of the set."""

    name: str
    number: int

    def rng(self, *purpose: int) -> np.random.Generator:
        """Give a random stream for one purpose in this scene, named by its devkit name, not by its place."""
        return np.random.default_rng([self.seed, int(self.name.split('-')[1]), *purpose])


@dataclass(frozen=True)
class Scene:
    """What one plan makes: the world, the rig and the lenses of its cameras."""

    plan: Plan
    world: World
    rig: dict[str, Sensor]
    lenses: dict[str, Lens]
    scenery: Scenery

    @property
    def key(self) -> str:
        """Return the name that all tokens of the scene are made from."""
        return f'{self.plan.seed}/{self.plan.name}'

    @property
    def logfile(self) -> str:
        """Return the prefix of its file names."""
        return f'toy{self.plan.seed:03d}-{self.plan.name}'

    def timestamp(self, time_s: float) -> int:
        """Give the time stamp of a time in the scene, us."""
        return FIRST_TIMESTAMP_US + self.plan.number * SCENE_GAP_US + round(time_s * 1e6)


def make_scene(plan: Plan) -> Scene:
    """Lay out a scene without writing anything."""
    world = make_world(plan.rng(0), plan.frames, plan.drop_share)
    rig = make_rig(plan.rng(1), *plan.image_size)
    lenses = {channel: make_lens(rig[channel], *plan.image_size) for channel in CAMERAS}
    return Scene(plan, world, rig, lenses, make_scenery(plan.rng(2), world.night))


@dataclass
class _Records:
    """The scene's share of the tables while it grows."""

    sample: list = field(default_factory=list)
    sample_data: list = field(default_factory=list)
    sample_annotation: list = field(default_factory=list)
    ego_pose: list = field(default_factory=list)

    def add_data(self, scene: Scene, sample: str, channel: str, time_s: float, *, is_key_frame: bool) -> str:
        """Record one file and the pose it was taken at; give its name."""
        folder, stamp = 'samples' if is_key_frame else 'sweeps', scene.timestamp(time_s)
        suffix = 'pcd.bin' if channel == LIDAR else 'jpg'
        name = f'{folder}/{channel}/{scene.logfile}__{channel}__{stamp}.{suffix}'
        size = (0, 0) if channel == LIDAR else scene.plan.image_size
        record = tables.sample_data(
            scene.key, sample, channel, stamp, name, is_key_frame=is_key_frame, size=size
        )
        xy, yaw = scene.world.drive.pose(time_s)
        self.sample_data.append(record)
        self.ego_pose.append(tables.ego_pose(record['token'], stamp, xy, float(yaw)))
        return name


def _write_cameras(
    root: Path, scene: Scene, frame: int, sample: str, records: _Records
) -> tuple[np.ndarray, np.ndarray]:
    """Take the six pictures of a key frame; give the visible and whole pixels of the active objects."""
    world, visible, whole = scene.world, 0, 0
    things = [world.things[index] for index in np.flatnonzero(world.active[frame])]
    for number, channel in enumerate(CAMERAS):
        time_s = frame * KEY_FRAME_S - CAMERA_LAG_US[channel] / 1e6
        lens, dropped, rng = (
            scene.lenses[channel],
            world.dropped[frame, number],
            scene.plan.rng(3, frame, number),
        )
        view = render(lens, scene.scenery, world, things, time_s, int(dropped), rng)
        name = records.add_data(scene, sample, channel, time_s, is_key_frame=True)
        write_jpeg(root / name, view.image, JPEG_QUALITY)
        visible, whole = visible + view.visible, whole + view.whole
    return visible, whole


def _write_sweeps(root: Path, scene: Scene, frame: int, sample: str, records: _Records) -> np.ndarray:
    """Write the sweeps since the last key frame and the one of this; give its points per active object."""
    things = [scene.world.things[index] for index in np.flatnonzero(scene.world.active[frame])]
    between = scene.plan.sweeps if frame else 0
    for number in range(between, -1, -1):
        time_s = (frame - number / (between + 1)) * KEY_FRAME_S
        points, counts = sweep(
            scene.rig[LIDAR], scene.world, things, time_s, scene.plan.rng(4, frame, number)
        )
        name = records.add_data(scene, sample, LIDAR, time_s, is_key_frame=number == 0)
        (root / name).write_bytes(points.tobytes())
    return counts


def _annotate(
    scene: Scene, frame: int, sample: str, seen: np.ndarray, grades: dict[int, str], points: dict[int, int]
) -> list[tables.Record]:
    """Annotate what is there and was seen now or a little before; `seen` is (frames, objects) bool."""
    lately = seen[max(frame - SEEN_FOR_FRAMES, 0) : frame + 1].any(0) & scene.world.active[frame]
    key, things, time_s = scene.key, scene.world.things, frame * KEY_FRAME_S
    return [
        tables.annotation(key, sample, index, things[index], time_s, grades[index], max(points[index], 1))
        for index in map(int, np.flatnonzero(lately))
    ]


def _write_frames(root: Path, scene: Scene) -> _Records:
    records, plan = _Records(), scene.plan
    seen = np.zeros_like(scene.world.active)
    threshold = max(MIN_PIXELS_SHARE * plan.image_size[0] * plan.image_size[1], 1)
    for frame in range(plan.frames):
        sample = tables.token(scene.key, 'sample', frame)
        stamp = scene.timestamp(frame * KEY_FRAME_S)
        own = tables.token(scene.key)
        records.sample.append(dict(token=sample, timestamp=stamp, prev='', next='', scene_token=own))
        visible, whole = _write_cameras(root, scene, frame, sample, records)
        counts = _write_sweeps(root, scene, frame, sample, records)
        active = [int(index) for index in np.flatnonzero(scene.world.active[frame])]
        seen[frame, active] = visible >= threshold
        grades = {
            index: tables.visibility_token(*pixels)
            for index, *pixels in zip(active, visible, whole, strict=True)
        }
        points = {index: int(count) for index, count in zip(active, counts, strict=True)}
        records.sample_annotation += _annotate(scene, frame, sample, seen, grades, points)
    return records


def write_scene(root: Path, plan: Plan) -> dict[str, list[tables.Record]]:
    """Write the files of a scene below `root` and give its records per table.

    The tables of a set are those of its scenes one after the other, with `nuscenes_tables.fixed_tables`.
    """
    cv2.setNumThreads(1)
    scene = make_scene(plan)
    records = _write_frames(root, scene)
    tables.link(records.sample)
    for channel in (*CAMERAS, LIDAR):
        sensor = tables.token(scene.key, 'calibrated_sensor', channel)
        tables.link([record for record in records.sample_data if record['calibrated_sensor_token'] == sensor])
    log, location = tables.token(scene.key, 'log'), tables.LOCATIONS[plan.number % len(tables.LOCATIONS)]
    return {
        'scene': [
            {
                'token': tables.token(scene.key),
                'log_token': log,
                'nbr_samples': plan.frames,
                'first_sample_token': records.sample[0]['token'],
                'last_sample_token': records.sample[-1]['token'],
                'name': plan.name,
                'description': f'Generated, {"night" if scene.world.night else "day"}',
            }
        ],
        'log': [
            dict(
                token=log, logfile=scene.logfile, vehicle='toy', date_captured='2018-07-10', location=location
            )
        ],
        'calibrated_sensor': [tables.calibrated_sensor(scene.key, sensor) for sensor in scene.rig.values()],
        'instance': tables.instances(records.sample_annotation, scene.world.things, scene.key),
        **vars(records),
    }
