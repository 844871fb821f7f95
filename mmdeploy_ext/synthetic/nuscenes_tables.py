"""The records of the generated drive in nuScenes' own tables (schema of nuscenes-devkit 1.x)."""

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.synthetic.nuscenes_rig import CAMERAS, LIDAR, Sensor
from mmdeploy_ext.synthetic.nuscenes_world import Thing

Record = dict[str, Any]

CATEGORIES = (
    'human.pedestrian.adult', 'human.pedestrian.child', 'human.pedestrian.wheelchair',
    'human.pedestrian.stroller', 'human.pedestrian.personal_mobility', 'human.pedestrian.police_officer',
    'human.pedestrian.construction_worker', 'animal',
    'vehicle.car', 'vehicle.motorcycle', 'vehicle.bicycle', 'vehicle.bus.bendy', 'vehicle.bus.rigid',
    'vehicle.truck', 'vehicle.construction', 'vehicle.emergency.ambulance', 'vehicle.emergency.police',
    'vehicle.trailer',
    'movable_object.barrier', 'movable_object.trafficcone', 'movable_object.pushable_pullable',
    'movable_object.debris', 'static_object.bicycle_rack',
)  # fmt: skip
ATTRIBUTES = (
    'vehicle.moving', 'vehicle.stopped', 'vehicle.parked', 'cycle.with_rider', 'cycle.without_rider',
    'pedestrian.sitting_lying_down', 'pedestrian.standing', 'pedestrian.moving',
)  # fmt: skip
VISIBILITIES = {'1': 'v0-40', '2': 'v40-60', '3': 'v60-80', '4': 'v80-100'}
LOCATIONS = ('singapore-onenorth', 'boston-seaport')


def token(*parts: object) -> str:
    """Give the token, 32 hexadecimal digits, that stands for these parts."""
    return hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=16).hexdigest()


def fixed_tables() -> dict[str, list[Record]]:
    """Give the tables that are the same for every set: category, attribute, visibility, sensor."""
    return {
        'category': [dict(token=token('category', name), name=name, description='') for name in CATEGORIES],
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


def visibility_token(visible: int, whole: int) -> str:
    """Grade the share of the object's pixels that can be seen, as the visibility table does."""
    share = visible / max(whole, 1)
    return str(1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side='right')))


def attribute_name(thing: Thing) -> str | None:
    """Give the attribute that fits class and motion; None for classes that have none."""
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
    """Make the record of one sensor on the car of one scene."""
    return {
        'token': token(scene, 'calibrated_sensor', sensor.channel),
        'sensor_token': token('sensor', sensor.channel),
        'translation': sensor.to_ego[:3, 3].tolist(),
        'rotation': Quaternion(matrix=sensor.to_ego, rtol=1e-6, atol=1e-6).normalised.elements.tolist(),
        'camera_intrinsic': [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
    }


def yaw_quaternion(yaw: float) -> list[float]:
    """Give the quaternion w x y z of a turn about z by `yaw` radians."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def ego_pose(key: str, timestamp: int, xy: np.ndarray, yaw: float) -> Record:
    """Make the record of the pose at which the sample data `key` was taken."""
    place = [float(xy[0]), float(xy[1]), 0.0]
    return dict(token=key, timestamp=timestamp, rotation=yaw_quaternion(yaw), translation=place)


def sample_data(
    scene: str,
    sample: str,
    channel: str,
    timestamp: int,
    filename: str,
    *,
    is_key_frame: bool,
    size: tuple[int, int] = (0, 0),
) -> Record:
    """Make the record of one file, not yet linked to its neighbours; `size` is (W, H) of a picture."""
    key = token(scene, channel, timestamp)
    return {
        'token': key,
        'sample_token': sample,
        'ego_pose_token': key,
        'calibrated_sensor_token': token(scene, 'calibrated_sensor', channel),
        'timestamp': timestamp,
        'fileformat': 'pcd' if channel == LIDAR else 'jpg',
        'is_key_frame': is_key_frame,
        'height': size[1],
        'width': size[0],
        'filename': filename,
        'prev': '',
        'next': '',
    }


def annotation(
    scene: str, sample: str, index: int, thing: Thing, time_s: float, visibility: str, lidar_points: int
) -> Record:
    """Make the record of object number `index` in a sample, not yet linked to its neighbours."""
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
    """Make the records of the annotated objects, and link the annotations of each."""
    records = []
    for index, thing in enumerate(things):
        key = token(scene, 'instance', index)
        mine = [record for record in annotations if record['instance_token'] == key]
        if mine:
            link(mine)
            record = dict(token=key, category_token=token('category', thing.kind.category))
            ends = dict(first_annotation_token=mine[0]['token'], last_annotation_token=mine[-1]['token'])
            records.append(dict(record, nbr_annotations=len(mine), **ends))
    return records


def link(records: list[Record]) -> None:
    """Chain records, which are in the order of time, by their `prev` and `next`."""
    for earlier, later in pairwise(records):
        earlier['next'], later['prev'] = later['token'], earlier['token']
