"""Infos of a data set as mmdet3d writes them, read without running a pickle's code, and their files.

Needs numpy only, pictures OpenCV. N cameras, h, w pixels of a picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base import plain_pickle
from mmdeploy_ext.base.errors import LONGEST, DataError, printable, shortened
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.runtime.geometry import invert_pose, not_rigid, rotation_of
from mmdeploy_ext.runtime.preprocess.cam2img import intrinsics_problem
from mmdeploy_ext.runtime.preprocess.fusion import PastSweep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.spec.preparation import MultiViewRule, PreprocessRule

INFOS = ('.pkl', '.json')
MICROSECONDS = 1e6
DATA_FOLDERS = ('samples', 'sweeps')
"""nuScenes' folders: paths below them stay the same when the data set moves."""
KITTI_ENTRIES = dict(
    image=('image_idx', 'image_path'),
    point_cloud=('velodyne_path',),
    calib=('P2', 'R0_rect', 'Tr_velo_to_cam'),
)


def read_infos(path: str | Path) -> list[Mapping[str, Any]]:
    """Read {'infos': [...]}, {'data_list': [...]} or a list, pickled or JSON; nothing in a pickle is run."""
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such file or folder; expected a folder of sweeps or infos (.pkl, .json)')
    try:
        stored = path.read_bytes()
        content = parse_json(stored) if path.suffix == '.json' else plain_pickle.loads(stored)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f'{path}: cannot be read ({error}); expected infos of mmdet3d, .pkl or .json'
        ) from error
    infos = content.get('infos', content.get('data_list')) if isinstance(content, dict) else content
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise DataError(f"{path}: has no list of infos; expected a file of mmdet3d's create_data.py")
    if not infos:
        raise DataError(f'{path}: is empty; expected at least one info')
    return infos


def find_file(
    name: str, source: Path, root: str | Path | None = None, kind: str = 'file', subfolder: Path | None = None
) -> Path:
    """Find a file that infos name: as given, below `root`, then below the folder of `source`."""
    if not isinstance(name, str):
        raise DataError(f'{source}: the path of its {kind} is {shortened(name)}, expected a text')
    path = Path(name)
    parts = path.parts
    folders = list(dict.fromkeys(Path(folder) for folder in (root, source.parent) if folder is not None))
    places = [path, *(Path(*parts[i:]) for i, part in enumerate(parts) if part in DATA_FOLDERS)]
    if subfolder and len(parts) == 1:
        places.append(subfolder / name)
    for candidate in (path, *(folder / place for folder in folders for place in places)):
        with contextlib.suppress(OSError):  # of a name that is too long
            if candidate.is_file():
                return candidate
    raise DataError(
        f'{source}: its {kind} {name[:LONGEST]} is missing, also under {" or ".join(map(str, folders))}; '
        'pass the folder of the data set with --data-root'
    )


def camera_names(info: Mapping[str, Any], rule: MultiViewRule, source: Path) -> list[str]:
    """Cameras of a rule in its order, or the info's first."""
    cameras = info.get('cams')
    cameras = cameras if isinstance(cameras, dict) else {}
    names = rule.cameras or tuple(name for name in cameras if isinstance(name, str))[: rule.num_cameras]
    entries = [cameras[name] for name in names if isinstance(cameras.get(name), dict)]
    if sum(isinstance(entry.get('data_path'), str) for entry in entries) != rule.num_cameras:
        raise DataError(
            f'{source}: an info has the cameras {shortened(list(cameras))}; expected data_path of '
            f'{", ".join(rule.cameras) or f"{rule.num_cameras} cameras"}'
        )
    return list(names)


@dataclasses.dataclass(frozen=True)
class RigFrame:
    """One frame of all cameras before its pictures are read; KITTI has a unit pose and time 0.

    Attributes:
        name: token or number of the info; KITTI: picture index.
        pictures: files in the order of the rule's cameras; None if missing.
        intrinsics: (N, 3, 3) float64 of the pictures.
        lidar2cam: (N, 4, 4) float64.
        ego_pose: (4, 4) float64, LiDAR frame to global frame.
        timestamp_s: absolute seconds.
        camera_times_s: (N,) float64 absolute seconds of the pictures, or None.
    """

    name: str
    pictures: tuple[Path | None, ...]
    intrinsics: np.ndarray
    lidar2cam: np.ndarray
    ego_pose: np.ndarray
    timestamp_s: float
    scene_token: str | None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    source: Path = Path()
    camera_times_s: np.ndarray | None = None

    @property
    def lidar2img(self) -> np.ndarray:
        """(N, 4, 4) float64, LiDAR frame to pixels of the pictures times depth."""
        full = np.tile(np.eye(4), (len(self.intrinsics), 1, 1))
        full[:, :3, :3] = self.intrinsics
        return full @ self.lidar2cam

    def read_pictures(self) -> list[np.ndarray]:
        """N pictures (h, w, 3) uint8 BGR, black where missing."""
        from mmdeploy_ext.runtime.preprocess.pictures import read_image

        pictures = [None if path is None else read_image(path) for path in self.pictures]
        first = next((picture for picture in pictures if picture is not None), None)
        if first is None:
            raise DataError(f'{self.source}: {self.name} has no image of any camera; expected at least one')
        return [np.zeros_like(first) if picture is None else picture for picture in pictures]


def read_frames(
    path: str | Path,
    rule: MultiViewRule | PreprocessRule,
    root: str | Path | None = None,
    missing: bool = False,
) -> list[RigFrame]:
    """Frames of infos with `cams`, or of KITTI, grouped by scene and sorted by time within it.

    `rule` gives cameras and their order. `root`: see `find_file`. `missing` allows missing pictures.
    """
    source = Path(path)
    frames = []

    def picture(camera: Mapping[str, Any]) -> Path | None:
        try:
            return find_file(camera['data_path'], source, root, 'picture')
        except DataError:
            if missing:
                return None
            raise

    for index, info in enumerate(read_infos(source)):
        frames.append(_frame(info, index, rule, source, picture))
    tokens = dict.fromkeys(frame.scene_token for frame in frames)
    scenes = {token: index for index, token in enumerate(tokens)}
    return sorted(frames, key=lambda frame: (scenes[frame.scene_token], frame.timestamp_s))


def _frame(
    info: Mapping[str, Any],
    index: int,
    rule: MultiViewRule | PreprocessRule,
    source: Path,
    picture: Callable[[Mapping[str, Any]], Path | None],
) -> RigFrame:
    if not hasattr(rule, 'cameras'):
        return _kitti_frame(info, index, source, picture)
    place, cameras, cam2lidar, intrinsics = f'{source}: info {index}', [], [], []
    for name in camera_names(info, rule, source):
        camera, camera_place = info['cams'][name], f'{place}: {printable(name)}'
        cameras.append(camera)
        cam2lidar.append(pose_of(camera, camera_place, 'sensor2lidar'))
        intrinsics.append(intrinsics_of(camera, camera_place, 'cam_intrinsic', rule.source))
    for key in ('token', 'scene_token'):
        if not isinstance(info.get(key), str | int | np.integer | None):
            raise DataError(f'{place}: {key} is {shortened(info[key])}, expected a text')
    times = None
    if all('timestamp' in camera for camera in cameras):
        times = np.array([seconds_of(camera, place) for camera in cameras])
    return RigFrame(
        str(index if info.get('token') is None else info['token']),
        tuple(map(picture, cameras)),
        np.stack(intrinsics),
        invert_pose(np.stack(cam2lidar)),
        pose_of(info, place, 'ego2global') @ pose_of(info, place, 'lidar2ego'),
        seconds_of(info, place),
        None if info.get('scene_token') is None else str(info['scene_token']),
        info,
        source,
        times,
    )


def _kitti_frame(
    info: Mapping[str, Any],
    index: int,
    source: Path,
    picture: Callable[[Mapping[str, Any]], Path | None],
) -> RigFrame:
    place = f'{source}: info {index}'
    parts = {}
    for key, names in KITTI_ENTRIES.items():
        parts[key] = info.get(key)
        if not isinstance(parts[key], dict) or set(names) - parts[key].keys():
            raise DataError(
                f'{place}: has no {key} with {", ".join(names)}; expected infos of KITTI, as '
                f"mmdet3d's create_data.py writes them"
            )
    calibration = parts['calib']
    projection, rectified, lidar = (
        numbers_of(calibration, f'{place}: calib', name, (4, 4)) for name in KITTI_ENTRIES['calib']
    )
    size = parts['image'].get('image_shape')
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = intrinsics_of(calibration, f'{place}: calib', 'P2', size)[:3, :3]
    return RigFrame(
        str(parts['image']['image_idx']),
        (picture(dict(data_path=parts['image']['image_path'])),),
        intrinsics[None, :3, :3],
        (np.linalg.inv(intrinsics) @ projection @ rectified @ lidar)[None],
        np.eye(4),
        0.0,
        None,
        info,
        source,
    )


def numbers_of(values: Mapping[str, Any], place: str, key: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Finite numbers of an info as float64, in one of `shapes` (() is a scalar)."""
    expected = f'finite numbers of shape {" or ".join(map(str, shapes))}' if shapes[0] else 'a finite number'
    expected = f"expected {expected}, as mmdet3d's create_data.py writes them"
    if not isinstance(values, dict) or key not in values:
        raise DataError(f'{place}: has no {key}; {expected}')
    try:
        array = np.asarray(values[key])
    except ValueError:  # lists of different lengths
        array = np.array(None)
    numbers = array.astype(np.float64) if array.dtype.kind in 'fiu' else None
    if numbers is None or array.shape not in shapes or not np.isfinite(numbers).all():
        raise DataError(f'{place}: {key} is {shortened(values[key])}; {expected}')
    return numbers


def intrinsics_of(
    values: Mapping[str, Any], place: str, key: str, size: Sequence[int] | None = None
) -> np.ndarray:
    """Intrinsics (3, 3) or (4, 4) float64 of an info for pictures of `size` (h, w)."""
    matrix = numbers_of(values, place, key, (3, 3), (4, 4))
    if problem := intrinsics_problem(matrix, size):
        raise DataError(f'{place}: {key}{problem}')
    return matrix


def seconds_of(values: Mapping[str, Any], place: str) -> float:
    """`timestamp` (microseconds) of an info, sweep or camera in seconds."""
    return float(numbers_of(values, place, 'timestamp', ())) / MICROSECONDS


def pose_of(values: Mapping[str, Any], place: str, name: str) -> np.ndarray:
    """Pose (4, 4) float64 of NAME_rotation ((3, 3) or quaternion w x y z) and NAME_translation.

    'sensor2lidar' goes from the sensor's frame to the LiDAR's.
    """
    key = f'{name}_rotation'
    pose, rotation = np.eye(4), numbers_of(values, place, key, (3, 3), (4,))
    if rotation.shape == (4,):
        if not rotation.any():
            raise DataError(f'{place}: {key} is {shortened(values[key])}; expected a quaternion, w x y z')
        rotation = rotation_of(rotation)
    pose[:3, :3], pose[:3, 3] = rotation, numbers_of(values, place, f'{name}_translation', (3,))
    if problem := not_rigid(pose):
        raise DataError(f'{place}: {key} is not a rotation: {problem}')
    return pose


def past_sweeps(info: Mapping[str, Any], place: str) -> list[PastSweep]:
    """`sweeps` of an info in its order (mmdet3d: newest first), or []."""
    sweeps = info.get('sweeps', ())
    if not isinstance(sweeps, list | tuple):
        raise DataError(f'{place}: sweeps is {shortened(sweeps)}, expected a list of sweeps of the past')
    past = []
    for index, sweep in enumerate(sweeps):
        title = f'{place}: sweeps[{index}]'
        if not isinstance(sweep, dict) or not isinstance(sweep.get('data_path'), str):
            raise DataError(f'{title}: is {shortened(sweep)}, expected a dict with the data_path of a sweep')
        numbers_of(sweep, title, 'sensor2lidar_rotation', (3, 3))
        pose_of(sweep, title, 'sensor2lidar')
        rotation = np.asarray(sweep['sensor2lidar_rotation'])
        translation = np.asarray(sweep['sensor2lidar_translation'])
        past.append(PastSweep(sweep['data_path'], rotation, translation, seconds_of(sweep, title)))
    return past
