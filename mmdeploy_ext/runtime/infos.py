"""Infos of a data set as mmdet3d writes them, read without running code in a pickle; their files.

Needs numpy only; `RigFrame.read_pictures` needs OpenCV. Glossary: N cameras, h, w pixels of a picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core import plain_pickle
from mmdeploy_ext.core.errors import LONGEST, DataError, printable, shortened
from mmdeploy_ext.runtime.geometry import invert_pose, not_rigid, rotation_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mmdeploy_ext.preprocess.cameras import MultiViewRule
    from mmdeploy_ext.preprocess.pictures import PreprocessRule

INFOS = ('.pkl', '.json')
"""Suffixes of files of infos."""
MICROSECONDS = 1e6
"""Microseconds of a second."""
MAX_BYTES = 1_500_000_000
"""Largest size of a file of infos.

A frame of nuScenes with ten sweeps takes 22.7 KB in a pickle and 1.7 times that in JSON, so the 28,130 frames
of its training set take 0.64 GB and 1.1 GB.
"""
LARGEST, LATEST = 1e9, 1e19
"""Bounds of numbers in a calibration or pose (the earth's radius is 6.4e6 m), and of times, also in ns."""
DATA_FOLDERS = ('samples', 'sweeps')
"""nuScenes' folders: a path from there on stays the same when the data set moves."""
KITTI_ENTRIES = dict(
    image=('image_idx', 'image_path'),
    point_cloud=('velodyne_path',),
    calib=('P2', 'R0_rect', 'Tr_velo_to_cam'),
)
"""Entries of an info of KITTI, and what is read of each."""


def read_infos(path: str | Path) -> list[Mapping[str, Any]]:
    """Read an infos file of mmdet3d: {'infos': [...]} or {'data_list': [...]} or a list, pickled or JSON.

    Nothing that a pickle names is run, numbers and arrays aside.

    Raises:
        DataError: missing, damaged, of another kind, empty, of more than `MAX_BYTES`, or a pickle with code
            in it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such file or folder; expected a folder of sweeps or infos (.pkl, .json)')
    if (size_bytes := path.stat().st_size) > MAX_BYTES:
        raise DataError(
            f'{path}: has {size_bytes} bytes, expected infos of at most {MAX_BYTES}; keep the frames that '
            f'are needed, or split it by scenes'
        )
    try:
        stored = path.read_bytes()
        content = json.loads(stored) if path.suffix == '.json' else plain_pickle.loads(stored)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f'{path}: cannot be read ({error}); expected infos of mmdet3d, .pkl or .json'
        ) from error
    infos = content.get('infos', content.get('data_list')) if isinstance(content, dict) else content
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise DataError(f"{path}: has no list of infos; expected what mmdet3d's create_data.py writes")
    if not infos:
        raise DataError(f'{path}: is empty; expected at least one info')
    return infos


def find_file(
    name: str, source: Path, root: str | Path | None = None, kind: str = 'file', subfolder: Path | None = None
) -> Path:
    """Return a file that infos name: `name` as it is, from the working directory, comes before all folders.

    Args:
        name: path in the infos; in the folders the parts from one of `DATA_FOLDERS` on are tried after all
            of it, the longest first.
        source: the infos' file.
        root: folder of the data set; the infos' own folder is tried after it; None tries that folder alone.
        kind: kind of the file, for the message.
        subfolder: folder below each of these for names without a folder; None: there is none.

    Raises:
        DataError: there is no such file, or `name` is no text.
    """
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
        f'{source}: its {kind} {name[:LONGEST]} is not there, nor under {" or ".join(map(str, folders))}; '
        f'give the folder of the data set (--data-root)'
    )


def camera_names(info: Mapping[str, Any], rule: MultiViewRule, source: Path) -> list[str]:
    """Return the cameras of a rule in its order; DataError if an info names no picture of one.

    Of a rule without names they are the first of the info, as many as the rule takes. Whether the pictures
    are there is not looked up. `source` is the file of the infos, for the message.
    """
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
    """One frame of all cameras as infos describe it, before its pictures are read.

    Infos of KITTI have neither pose nor time: the unit matrix and 0 stand for them.

    Attributes:
        name: token of the info, or its number; of KITTI the index of its picture.
        pictures: files, in the order of the cameras of the rule; None for a missing one.
        intrinsics: (N, 3, 3) float64 of these pictures.
        lidar2cam: (N, 4, 4) float64, LiDAR frame to camera frame.
        ego_pose: (4, 4) float64, LiDAR frame to global frame.
        timestamp_s: seconds, absolute.
        scene_token: None if the info has none.
        info: the info as it was read.
        source: its file.
        camera_times_s: (N,) float64, absolute seconds of the pictures; None if the info has not all of them.
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
        """Return N pictures (h, w, 3) uint8, BGR; a black one for a camera whose picture is missing.

        Raises:
            ImageError: a file that is no picture.
            DataError: all pictures are missing.
        """
        from mmdeploy_ext.preprocess.pictures import read_image

        pictures = [None if path is None else read_image(path) for path in self.pictures]
        first = next((picture for picture in pictures if picture is not None), None)
        if first is None:
            raise DataError(f'{self.source}: {self.name} has the picture of no camera; expected one at least')
        return [np.zeros_like(first) if picture is None else picture for picture in pictures]


def read_frames(
    path: str | Path,
    rule: MultiViewRule | PreprocessRule,
    root: str | Path | None = None,
    missing: bool = False,
) -> list[RigFrame]:
    """Return the frames of infos, scene by scene as they come first there, each scene in the order of time.

    Args:
        path: infos of mmdet3d's kind (.pkl, .json) with `cams`, or infos of KITTI.
        rule: rule of the model, which has the cameras and their order; that of a single picture for infos of
            KITTI.
        root: folder of the data set, if the pictures are not at their paths in the infos; None: they are at
            them, or below the folder of the infos. See `find_file`.
        missing: allow frames in which the picture of a camera is missing.

    Raises:
        DataError: infos that lack a camera, a calibration or a pose, or whose pictures are missing; for the
            file see `read_infos`.
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
    """Return the frame of an info; `picture` returns the file of a camera's entry, None for a missing one."""
    if not hasattr(rule, 'cameras'):
        return _kitti_frame(info, index, source, picture)
    place, cameras, cam2lidar, intrinsics = f'{source}: info {index}', [], [], []
    for name in camera_names(info, rule, source):
        camera, camera_place = info['cams'][name], f'{place}: {printable(name)}'
        cameras.append(camera)
        cam2lidar.append(pose_of(camera, camera_place, 'sensor2lidar'))
        intrinsics.append(numbers_of(camera, camera_place, 'cam_intrinsic', (3, 3)))
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
    """Return the frame of an info of KITTI: the left colour camera alone, without pose and time."""
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
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = projection[:3, :3]
    if abs(np.linalg.det(intrinsics)) < 1e-12:
        raise DataError(f'{place}: calib: P2 has no inverse; mend the calibration')
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


def numbers_of(
    values: Mapping[str, Any], place: str, key: str, *shapes: tuple[int, ...], largest: float = LARGEST
) -> np.ndarray:
    """Return numbers of an info as float64, in one of the shapes.

    Args:
        values: the info, or an entry of it.
        place: file and entry, with which messages begin.
        key: key of the numbers in `values`.
        shapes: shapes that are allowed; () for a single number.
        largest: largest absolute value that is allowed.

    Raises:
        DataError: the key is missing, or its value is not such numbers.
    """
    expected = f'numbers of shape {" or ".join(map(str, shapes))}' if shapes[0] else 'a number'
    expected = f"expected {expected} of at most {largest:g}, as mmdet3d's create_data.py writes them"
    if not isinstance(values, dict) or key not in values:
        raise DataError(f'{place}: has no {key}; {expected}')
    try:
        array = np.asarray(values[key])
    except ValueError:  # lists of different lengths
        array = np.array(None)
    numbers = array.astype(np.float64) if array.dtype.kind in 'fiu' else None
    if numbers is None or array.shape not in shapes or not (np.abs(numbers) <= largest).all():
        raise DataError(f'{place}: {key} is {shortened(values[key])}; {expected}')
    return numbers


def seconds_of(values: Mapping[str, Any], place: str) -> float:
    """Return the `timestamp` of an info, or of one of its sweeps or cameras, microseconds, in seconds.

    `place` begins the message of the DataError for a value that is no time.
    """
    return float(numbers_of(values, place, 'timestamp', (), largest=LATEST)) / MICROSECONDS


def pose_of(values: Mapping[str, Any], place: str, name: str) -> np.ndarray:
    """Return the pose (4, 4) float64 of NAME_rotation and NAME_translation in `values`.

    `values` is an info or its entry of a camera or sweep, `place` this in words, for messages. `name` is such
    as 'sensor2lidar': a pose from the sensor's frame to that of the LiDAR. The rotation is (3, 3), or a
    quaternion w x y z of any length.

    Raises:
        DataError: one of them is missing or no rotation or translation; the message begins with `place`.
    """
    key = f'{name}_rotation'
    pose, rotation = np.eye(4), numbers_of(values, place, key, (3, 3), (4,))
    if rotation.shape == (4,):
        squared = rotation @ rotation
        if not 0 < squared < np.inf:
            raise DataError(f'{place}: {key} is {shortened(values[key])}; expected a quaternion, w x y z')
        rotation = rotation_of(rotation)
    pose[:3, :3], pose[:3, 3] = rotation, numbers_of(values, place, f'{name}_translation', (3,))
    if problem := not_rigid(pose):
        raise DataError(f'{place}: {key} is no rotation: {problem}')
    return pose


@dataclasses.dataclass(frozen=True)
class PastSweep:
    """A sweep before that of an info, and the motion of its points into the LiDAR frame of the info.

    Attributes:
        path: path as in the info.
        rotation: (3, 3), which points as columns are multiplied by, of the type in the info.
        translation: (3,), metres, likewise.
        timestamp_s: seconds, absolute.
    """

    path: str
    rotation: np.ndarray
    translation: np.ndarray
    timestamp_s: float


def past_sweeps(info: Mapping[str, Any], place: str) -> list[PastSweep]:
    """Return the `sweeps` of an info in its order, [] if it has none; mmdet3d writes the newest first.

    Raises:
        DataError: a sweep without a path, a motion or a time; the message begins with `place`.
    """
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
