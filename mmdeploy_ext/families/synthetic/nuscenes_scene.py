"""Writes one scene of the generated drive: pictures, sweeps, and rows of nuScenes' tables."""

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.families.synthetic.nuscenes_sensors import (
    CAMERA_LAG_US,
    CAMERAS,
    LIDAR,
    Lens,
    Scenery,
    Sensor,
    make_lens,
    make_rig,
    make_scenery,
    measure_sweep,
    render,
)
from mmdeploy_ext.families.synthetic.nuscenes_world import KEY_FRAME_S, KINDS, Thing, World, make_world
from mmdeploy_ext.families.synthetic.staging import write_jpeg

Record = dict[str, Any]

ATTRIBUTES = (
    'vehicle.moving', 'vehicle.stopped', 'vehicle.parked', 'cycle.with_rider', 'cycle.without_rider',
    'pedestrian.sitting_lying_down', 'pedestrian.standing', 'pedestrian.moving',
)  # fmt: skip
"""Names of the table `attribute`."""
VISIBILITIES = {'1': 'v0-40', '2': 'v40-60', '3': 'v60-80', '4': 'v80-100'}
"""Token -> visible percent of an object."""
LOCATIONS = ('singapore-onenorth', 'boston-seaport')
"""Names of the maps of scenes, in turn."""


def token(*parts: object) -> str:
    """Return a token of 32 hexadecimal digits, the hash of `parts`."""
    return hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=16).hexdigest()


def fixed_tables() -> dict[str, list[Record]]:
    """Return name -> rows of the tables category, attribute, visibility and sensor."""
    categories = [kind.category for kind in KINDS]
    return {
        'category': [dict(token=token('category', name), name=name, description='') for name in categories],
        'attribute': [dict(token=token('attribute', name), name=name, description='') for name in ATTRIBUTES],
        'visibility': [
            dict(token=key, level=level, description=f'visible share of the object: {level} %')
            for key, level in VISIBILITIES.items()
        ],
        'sensor': [
            dict(token=token('sensor', name), channel=name, modality='lidar' if name == LIDAR else 'camera')
            for name in (*CAMERAS, LIDAR)
        ],
    }


def visibility_token(visible: int, projected: int) -> str:
    """Return the key of `VISIBILITIES` by visible and unhidden (`projected`) pixels in all cameras."""
    share = visible / max(projected, 1)
    return str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side='right')))


def attribute_name(thing: Thing) -> str | None:
    """Return the attribute by an object's class and motion, or None."""
    moving = thing.speed > 0
    family = thing.kind.category.split('.')[0]
    if family == 'movable_object':
        return None
    if family == 'human':
        return 'pedestrian.moving' if moving else 'pedestrian.standing'
    if thing.kind.name in ('bicycle', 'motorcycle'):
        return 'cycle.with_rider' if moving else 'cycle.without_rider'
    if moving:
        return 'vehicle.moving'
    return 'vehicle.stopped' if thing.kind.name == 'bus' else 'vehicle.parked'


def calibrated_sensor(scene: str, sensor: Sensor) -> Record:
    """Return a sensor's row of calibrated_sensor."""
    return {
        'token': token(scene, 'calibrated_sensor', sensor.channel),
        'sensor_token': token('sensor', sensor.channel),
        'translation': sensor.to_ego[:3, 3].tolist(),
        'rotation': Quaternion(matrix=sensor.to_ego, rtol=1e-6, atol=1e-6).normalised.elements.tolist(),
        'camera_intrinsic': [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
    }


def yaw_quaternion(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def annotation(
    scene: str, sample: str, index: int, thing: Thing, time_s: float, visibility: str, lidar_points: int
) -> Record:
    """Return the record of an object in a key frame, not yet linked.

    - `scene`: `Scene.key`.
    - `sample`: token of the key frame.
    - `index`: of the object in its world.
    - `time_s`: seconds since the start of the scene.
    - `visibility`: token.
    - `lidar_points`: number of points on the object.
    """
    xy, yaw = thing.pose(time_s)
    attribute = attribute_name(thing)
    return {
        'token': token(scene, sample, 'annotation', index),
        'sample_token': sample,
        'instance_token': token(scene, 'instance', index),
        'visibility_token': visibility,
        'attribute_tokens': [token('attribute', attribute)] if attribute else [],
        'translation': [float(xy[0]), float(xy[1]), float(thing.wlh[2] / 2)],
        'size': thing.wlh.tolist(),
        'rotation': yaw_quaternion(float(yaw)),
        'prev': '',
        'next': '',
        'num_lidar_pts': lidar_points,
        'num_radar_pts': 0,
    }


def instances(annotations: list[Record], things: tuple[Thing, ...], scene: str) -> list[Record]:
    """Return rows of the table `instance`, and link the objects' annotations (in order of time), in place."""
    records = []
    for index, thing in enumerate(things):
        key = token(scene, 'instance', index)
        of_thing = [record for record in annotations if record['instance_token'] == key]
        if of_thing:
            link(of_thing)
            record = dict(token=key, category_token=token('category', thing.kind.category))
            record['nbr_annotations'] = len(of_thing)
            record['first_annotation_token'] = of_thing[0]['token']
            record['last_annotation_token'] = of_thing[-1]['token']
            records.append(record)
    return records


def link(records: list[Record]) -> None:
    """Set `prev` and `next` of records in order of time, in place; the ends keep theirs."""
    for earlier, later in pairwise(records):
        earlier['next'], later['prev'] = later['token'], earlier['token']


# ---------------------------------------------------------------- scenes


JPEG_QUALITY = 90
"""Quality of the pictures, 0..100."""
FIRST_TIMESTAMP_US = 1_531_000_000_000_000
"""Start of the first scene, microseconds."""
SCENE_GAP_US = 600_000_000
"""Between starts of scenes, microseconds."""
MAX_FRAMES = round(SCENE_GAP_US / (KEY_FRAME_S * 1e6))
"""Most key frames of a scene: it ends before the next, since loaders sort by time."""
MIN_PIXELS_SHARE = 1e-4
"""Least visible pixels in all cameras, as a share of a picture."""
VISIBLE_FOR_FRAMES = 2
"""Key frames for which a hidden object stays annotated."""


@dataclass(frozen=True)
class SetOptions:
    """The parameters of a set.

    Attributes:
        frames: key frames per scene, at 2 Hz.
        image_size: (W, H), px.
        sweeps: LiDAR sweeps between two key frames; cameras have key frames alone.
        drop_share: chance that a good camera drops out in the next key frame, never twice in a row;
            annotations stay.
    """

    train_scenes: int = 32
    val_scenes: int = 5
    frames: int = 24
    seed: int = 0
    image_size: tuple[int, int] = (352, 198)
    sweeps: int = 0
    drop_share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class ScenePlan(SetOptions):
    """One scene's parameters: `name` in the devkit, such as 'scene-0103', and `number` in the set."""

    name: str
    number: int

    def rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(self.name.split('-')[1]), *purpose])


@dataclass(frozen=True)
class Scene:
    """The content of one scene.

    Attributes:
        world: motion of the car, and the objects.
        rig: name -> sensor.
        lenses: camera -> its rays.
        scenery: ground and sky.
    """

    plan: ScenePlan
    world: World
    rig: dict[str, Sensor]
    lenses: dict[str, Lens]
    scenery: Scenery

    @property
    def key(self) -> str:
        return f'{self.plan.seed}/{self.plan.name}'

    @property
    def logfile(self) -> str:
        return f'toy{self.plan.seed:03d}-{self.plan.name}'

    def timestamp(self, time_s: float) -> int:
        return FIRST_TIMESTAMP_US + self.plan.number * SCENE_GAP_US + round(time_s * 1e6)


def make_scene(plan: ScenePlan) -> Scene:
    """Make the content of a scene ; equal plans give equal scenes."""
    world = make_world(plan.rng(0), plan.frames, plan.drop_share)
    rig = make_rig(plan.rng(1), *plan.image_size)
    lenses = {channel: make_lens(rig[channel], *plan.image_size) for channel in CAMERAS}
    return Scene(plan, world, rig, lenses, make_scenery(plan.rng(2), world.night))


@dataclass
class _Records:
    sample: list = field(default_factory=list)
    sample_data: list = field(default_factory=list)
    sample_annotation: list = field(default_factory=list)
    ego_pose: list = field(default_factory=list)

    def add_data(self, scene: Scene, sample: str, channel: str, time_s: float, *, is_key_frame: bool) -> str:
        """Add a file's records, not yet linked; return its name in the set."""
        folder, timestamp = 'samples' if is_key_frame else 'sweeps', scene.timestamp(time_s)
        suffix = 'pcd.bin' if channel == LIDAR else 'jpg'
        name = f'{folder}/{channel}/{scene.logfile}__{channel}__{timestamp}.{suffix}'
        width, height = (0, 0) if channel == LIDAR else scene.plan.image_size
        key = token(scene.key, channel, timestamp)
        record = {
            'token': key,
            'sample_token': sample,
            'ego_pose_token': key,
            'calibrated_sensor_token': token(scene.key, 'calibrated_sensor', channel),
            'timestamp': timestamp,
            'fileformat': 'pcd' if channel == LIDAR else 'jpg',
            'is_key_frame': is_key_frame,
            'height': height,
            'width': width,
            'filename': name,
            'prev': '',
            'next': '',
        }
        (x, y), yaw = scene.world.drive.pose(time_s)
        pose = dict(token=key, timestamp=timestamp, rotation=yaw_quaternion(float(yaw)))
        pose['translation'] = [float(x), float(y), 0.0]
        self.sample_data.append(record)
        self.ego_pose.append(pose)
        return name


def _write_cameras(
    root: Path, scene: Scene, frame: int, sample: str, records: _Records
) -> tuple[np.ndarray, np.ndarray]:
    world, visible, projected = scene.world, 0, 0
    things = [world.things[index] for index in np.flatnonzero(world.active[frame])]
    for number, channel in enumerate(CAMERAS):
        time_s = frame * KEY_FRAME_S - CAMERA_LAG_US[channel] / 1e6
        dropped, rng = int(world.dropped[frame, number]), scene.plan.rng(3, frame, number)
        view = render(scene.lenses[channel], scene.scenery, world, things, time_s, dropped, rng)
        name = records.add_data(scene, sample, channel, time_s, is_key_frame=True)
        write_jpeg(root / name, view.image, JPEG_QUALITY)
        visible, projected = visible + view.visible, projected + view.projected
    return visible, projected


def _write_sweeps(root: Path, scene: Scene, frame: int, sample: str, records: _Records) -> np.ndarray:
    things = [scene.world.things[index] for index in np.flatnonzero(scene.world.active[frame])]
    between = scene.plan.sweeps if frame else 0
    for number in range(between, -1, -1):
        time_s = (frame - number / (between + 1)) * KEY_FRAME_S
        points, counts = measure_sweep(
            scene.rig[LIDAR], scene.world, things, time_s, scene.plan.rng(4, frame, number)
        )
        name = records.add_data(scene, sample, LIDAR, time_s, is_key_frame=number == 0)
        (root / name).write_bytes(points.tobytes())
    return counts


def _write_frames(root: Path, scene: Scene) -> _Records:
    records, plan, things = _Records(), scene.plan, scene.world.things
    is_visible = np.zeros_like(scene.world.active)
    min_pixels = max(MIN_PIXELS_SHARE * plan.image_size[0] * plan.image_size[1], 1)
    for frame in range(plan.frames):
        sample, time_s = token(scene.key, 'sample', frame), frame * KEY_FRAME_S
        record = dict(token=sample, timestamp=scene.timestamp(time_s), prev='', next='')
        records.sample.append(dict(record, scene_token=token(scene.key)))
        visible, projected = _write_cameras(root, scene, frame, sample, records)
        counts = _write_sweeps(root, scene, frame, sample, records)
        active = [int(index) for index in np.flatnonzero(scene.world.active[frame])]
        is_visible[frame, active] = visible >= min_pixels
        is_annotated = is_visible[max(frame - VISIBLE_FOR_FRAMES, 0) : frame + 1].any(0)
        for index, *pixels, points in zip(active, visible, projected, counts, strict=True):
            if is_annotated[index]:
                # at least 1: nuScenes' metrics and training pipelines leave out objects without a point
                visibility, points = visibility_token(*pixels), max(int(points), 1)
                record = annotation(scene.key, sample, index, things[index], time_s, visibility, points)
                records.sample_annotation.append(record)
    return records


def write_scene(root: Path, plan: ScenePlan) -> dict[str, list[Record]]:
    """Write the files of a scene below `root` and return table -> its records."""
    scene = make_scene(plan)
    records = _write_frames(root, scene)
    link(records.sample)
    for channel in (*CAMERAS, LIDAR):
        sensor = token(scene.key, 'calibrated_sensor', channel)
        link([record for record in records.sample_data if record['calibrated_sensor_token'] == sensor])
    log_token, location = token(scene.key, 'log'), LOCATIONS[plan.number % len(LOCATIONS)]
    log = dict(token=log_token, logfile=scene.logfile, vehicle='toy', date_captured='2018-07-10')
    log['location'] = location
    scene_record = {
        'token': token(scene.key),
        'log_token': log_token,
        'nbr_samples': plan.frames,
        'first_sample_token': records.sample[0]['token'],
        'last_sample_token': records.sample[-1]['token'],
        'name': plan.name,
        'description': f'Generated, {"night" if scene.world.night else "day"}',
    }
    return {
        'scene': [scene_record],
        'log': [log],
        'calibrated_sensor': [calibrated_sensor(scene.key, sensor) for sensor in scene.rig.values()],
        'instance': instances(records.sample_annotation, scene.world.things, scene.key),
        **vars(records),
    }
