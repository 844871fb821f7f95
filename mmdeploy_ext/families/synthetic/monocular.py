"""Annotations of single pictures of a generated drive: `mm2onnx synthetic monocular --out DIR`.

- `nuscenes_infos_{train,val}_mono3d.coco.json`: the six pictures of every key frame with cameras and poses,
  for `NuScenesMonoDataset`;
- `kitti_infos_{train,val}_mono3d.coco.json` and `kitti_infos_{train,val}.pkl`: the pictures with a car, a
  cyclist or a pedestrian, for `KittiMonoDataset`;
- `{train,val}/velodyne/*.bin`: their sweeps, for `KittiDataset`, with the LiDAR near the camera, looking
  ahead.

Glossary: n objects, P points. Frames: x to the right, y down, z ahead of a camera; metres.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.files import atomic_path, write_json
from mmdeploy_ext.families.synthetic import staging
from mmdeploy_ext.runtime.geometry import rotation_of
from mmdeploy_ext.runtime.points import read_points
from mmdeploy_ext.runtime.preprocess.cam2img import square_matrix
from mmdeploy_ext.spec.preparation import CAMERAS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nuscenes.nuscenes import NuScenes

VERSION = 'v1.0-trainval'
CLASSES = {
    'vehicle.car': 'car', 'vehicle.truck': 'truck', 'vehicle.trailer': 'trailer', 'vehicle.bus': 'bus',
    'vehicle.construction': 'construction_vehicle', 'vehicle.bicycle': 'bicycle',
    'vehicle.motorcycle': 'motorcycle', 'human.pedestrian': 'pedestrian',
    'movable_object.trafficcone': 'traffic_cone', 'movable_object.barrier': 'barrier',
}  # fmt: skip
"""Beginning of a category -> class, in the order of labels."""
ATTRIBUTES = (
    'cycle.with_rider', 'cycle.without_rider', 'pedestrian.moving', 'pedestrian.standing',
    'pedestrian.sitting_lying_down', 'vehicle.moving', 'vehicle.parked', 'vehicle.stopped', 'None',
)  # fmt: skip
"""Attributes in the order of mmdet3d's labels."""
KITTI = dict(pedestrian='Pedestrian', bicycle='Cyclist', car='Car')
"""Class of a drive -> class of KITTI, in the order of labels."""
LIDAR_TO_CAMERA = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]])
"""From KITTI's sweeps here (x ahead, y left, z up) to their camera."""
POINT_COLUMNS, KITTI_COLUMNS = 5, 4
"""Values of a point of nuScenes, and of KITTI (intensity last)."""
NEAR_M, SMALLEST_PX = 0.5, 2.0
"""Nearest depth of an object's middle (twice its corners'); shortest side of a box."""


def to_parent(record: dict[str, Any]) -> np.ndarray:
    """Return the matrix (4, 4) from a record's frame to its parent frame, metres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(np.asarray(record['rotation'])), record['translation']
    return matrix


def to_global(nusc: NuScenes, record: dict[str, Any]) -> np.ndarray:
    """Return the matrix (4, 4) from a record's sensor to the global frame."""
    ego, sensor = (nusc.get(name, record[f'{name}_token']) for name in ('ego_pose', 'calibrated_sensor'))
    return to_parent(ego) @ to_parent(sensor)


def pictures(nusc: NuScenes, scenes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the sample_data records of key frames' pictures."""
    for scene in sorted((one for one in nusc.scene if one['name'] in scenes), key=lambda one: one['name']):
        token = scene['first_sample_token']
        while token:
            sample = nusc.get('sample', token)
            yield from (nusc.get('sample_data', sample['data'][camera]) for camera in CAMERAS)
            token = sample['next']


def kitti_sweep(nusc: NuScenes, record: dict[str, Any]) -> np.ndarray:
    """Return a key frame's sweep (P, 4) float32: x, y, z in metres (`LIDAR_TO_CAMERA`), intensity."""
    sample = nusc.get('sample', record['sample_token'])
    lidar = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
    to_kitti = np.linalg.inv(to_global(nusc, record) @ LIDAR_TO_CAMERA) @ to_global(nusc, lidar)
    points = read_points(Path(nusc.dataroot, lidar['filename']), POINT_COLUMNS)
    xyz = points[:, :3] @ to_kitti[:3, :3].T + to_kitti[:3, 3]
    return np.column_stack([xyz, points[:, 3] / 255]).astype(np.float32)


def image_entry(nusc: NuScenes, index: int, record: dict[str, Any]) -> dict[str, Any]:
    sensor = nusc.get('calibrated_sensor', record['calibrated_sensor_token'])
    pose = nusc.get('ego_pose', record['ego_pose_token'])
    return dict(
        id=index,
        token=record['sample_token'],
        file_name=record['filename'],
        width=record['width'],
        height=record['height'],
        cam_intrinsic=sensor['camera_intrinsic'],
        cam2ego_rotation=sensor['rotation'],
        cam2ego_translation=sensor['translation'],
        ego2global_rotation=pose['rotation'],
        ego2global_translation=pose['translation'],
    )


def objects(nusc: NuScenes, record: dict[str, Any], image: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the objects in a picture, also hidden ones, as mmdet3d's annotations.

    `bbox` x y w h in pixels, `bbox_cam3d` (middle, length, height, width in metres, yaw in radians: 0 along
    x, pi / 2 towards the camera), `velo_cam3d` (x, z over the ground, m/s) and `center2d` (pixels, depth in
    metres) in the camera's frame, with class and attribute.
    """
    to_camera = np.linalg.inv(to_global(nusc, record))
    intrinsic, size = np.array(image['cam_intrinsic']), (image['width'], image['height'])
    for token in nusc.get('sample', record['sample_token'])['anns']:
        annotation = nusc.get('sample_annotation', token)
        label = next((key for key in CLASSES if annotation['category_name'].startswith(key)), None)
        box = to_camera @ to_parent(annotation)
        width, length, height = annotation['size']
        corners = seen_box(box, (length, width, height), intrinsic, size)
        if label is None or box[2, 3] < NEAR_M or corners is None:
            continue
        yaw, centre = float(np.arctan2(-box[2, 0], box[0, 0])), intrinsic @ box[:3, 3] / box[2, 3]
        attributes = [nusc.get('attribute', one)['name'] for one in annotation['attribute_tokens']]
        attribute = (attributes or ['None'])[0]
        x1, y1, x2, y2 = corners
        yield dict(
            category_name=CLASSES[label],
            category_id=list(CLASSES.values()).index(CLASSES[label]),
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            iscrowd=0,
            bbox_cam3d=[*box[:3, 3].tolist(), length, height, width, yaw],
            velo_cam3d=(to_camera[:3, :3] @ np.nan_to_num(nusc.box_velocity(token)))[[0, 2]].tolist(),
            center2d=[float(centre[0]), float(centre[1]), float(box[2, 3])],
            attribute_name=attribute,
            attribute_id=ATTRIBUTES.index(attribute),
        )


def seen_box(
    box: np.ndarray, sides: tuple[float, float, float], intrinsic: np.ndarray, size: tuple[int, int]
) -> list[float] | None:
    """Return x1 y1 x2 y2 of a box, cut at the picture's borders.

    Args:
        box: (4, 4) from the box (x along its length) to the camera, metres.
        sides: length, width, height, metres.
        intrinsic: (3, 3), from the camera to pixels.
        size: (w, h), pixels.
    """
    signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing='ij'), -1).reshape(8, 3)
    corners = (signs * sides) @ box[:3, :3].T + box[:3, 3]
    if corners[:, 2].min() <= NEAR_M / 2:
        return None
    pixels = corners @ intrinsic.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = np.clip(pixels.min(0), 0, size), np.clip(pixels.max(0), 0, size)
    return [*low.tolist(), *high.tolist()] if (high - low).min() >= SMALLEST_PX else None


def annotated(nusc: NuScenes, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return `images`, `annotations` and `categories` for `NuScenesMonoDataset`."""
    images = [image_entry(nusc, index, record) for index, record in enumerate(records)]
    entries = [
        dict(entry, image_id=image['id'])
        for image, record in zip(images, records, strict=True)
        for entry in objects(nusc, record, image)
    ]
    annotations = [dict(entry, id=index) for index, entry in enumerate(entries)]
    categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES.values())]
    return dict(images=images, annotations=annotations, categories=categories)


def write_kitti(
    nusc: NuScenes, split: str, records: Sequence[dict[str, Any]], content: dict[str, Any]
) -> dict[str, Any]:
    """Write infos and sweeps of pictures with KITTI's classes; return annotations for `KittiMonoDataset`.

    `content` is the result of `annotated`.
    """
    labels, annotations, infos, images = list(KITTI), [], [], []
    root = Path(nusc.dataroot)
    folder = Path(split, 'velodyne')
    (root / folder).mkdir(parents=True, exist_ok=True)
    for image, record in zip(content['images'], records, strict=True):
        entries = [
            entry
            for entry in content['annotations']
            if entry['image_id'] == image['id'] and entry['category_name'] in KITTI
        ]
        if not entries:
            continue
        camera, index = square_matrix(image['cam_intrinsic']), len(images)
        for entry in entries:
            label = labels.index(entry['category_name'])
            changes = dict(id=len(annotations), image_id=index, category_id=label)
            annotations.append(entry | changes | dict(category_name=KITTI[entry['category_name']]))
        path = folder / f'{index:06d}.bin'
        with atomic_path(root / path) as target:
            Path(target).write_bytes(kitti_sweep(nusc, record).tobytes())
        point_cloud = dict(num_features=KITTI_COLUMNS, velodyne_path=str(path))
        infos.append(dict(kitti_info(index, image, camera, entries), point_cloud=point_cloud))
        facts = {key: image[key] for key in ('file_name', 'width', 'height')}
        images.append(dict(facts, id=index, cam_intrinsic=camera.tolist()))
    with atomic_path(root / f'kitti_infos_{split}.pkl') as target:
        Path(target).write_bytes(pickle.dumps(infos))
    categories = [dict(id=index, name=name) for index, name in enumerate(KITTI.values())]
    return dict(images=images, annotations=annotations, categories=categories)


def kitti_info(
    index: int, image: dict[str, Any], camera: np.ndarray, objects: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return a picture's info for KITTI's evaluator; `camera` (4, 4) is its intrinsic matrix."""
    boxes = np.array([entry['bbox_cam3d'] for entry in objects]).reshape(-1, 7)
    bottoms = boxes[:, :3] + np.array([0, 0.5, 0]) * boxes[:, 3:6]
    corners = np.array([entry['bbox'] for entry in objects]).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    annos = dict(
        name=np.array([KITTI[entry['category_name']] for entry in objects], dtype=str),
        truncated=np.zeros(len(objects)),
        occluded=np.zeros(len(objects), int),
        alpha=boxes[:, 6] - np.arctan2(boxes[:, 0], boxes[:, 2]),
        bbox=corners,
        dimensions=boxes[:, 3:6],
        location=bottoms,
        rotation_y=boxes[:, 6],
        index=np.arange(len(objects)),
        group_ids=np.arange(len(objects)),
        difficulty=np.zeros(len(objects), int),
    )
    shape = np.array([image['height'], image['width']], np.int32)
    return dict(
        image=dict(image_idx=index, image_path=image['file_name'], image_shape=shape),
        calib=dict(P2=camera, R0_rect=np.eye(4), Tr_velo_to_cam=LIDAR_TO_CAMERA),
        annos=annos,
    )


def write_annotations(root: Path) -> dict[str, int]:
    """Write the files; return file name -> number of pictures."""
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils import splits

    nusc, counts = NuScenes(VERSION, str(root), verbose=False), {}
    for split in ('train', 'val'):
        records = list(pictures(nusc, getattr(splits, split)))
        content = annotated(nusc, records)
        kitti = write_kitti(nusc, split, records, content)
        for kind, entries in (('nuscenes', content), ('kitti', kitti)):
            name = f'{kind}_infos_{split}_mono3d.coco.json'
            write_json(root / name, entries)
            counts[name] = len(entries['images'])
    return counts


def run(args: argparse.Namespace) -> int:
    root = Path(args.out)
    for name, count in write_annotations(root).items():
        print(f'{root / name}: {count} pictures')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    staging.add_folder(parser, 'data/toy_nuscenes')
