"""Infos of a data set as mmdet3d writes them, read without running what a pickle names; their files.

Needs numpy only; `RigFrame.read_pictures` needs OpenCV. Glossary: N cameras.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, Mm2OnnxError
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mmdeploy_ext.inputs.cameras import MultiViewRule

INFOS = ('.pkl', '.json')
PARTS = ('samples', 'sweeps')
"""nuScenes' folders: what a path has from there on stays when the data set moves."""
PLAIN = {
    *(('collections', 'OrderedDict'), ('numpy', 'ndarray'), ('numpy', 'dtype')),
    *(
        (f'numpy.{core}.multiarray', name)
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
    *((f'numpy.{core}.numeric', '_frombuffer') for core in ('core', '_core')),
}
"""What an infos file may name: numbers and arrays."""


def read_infos(path: str | Path) -> list[Mapping[str, Any]]:
    """Read an infos file of mmdet3d: {'infos': [...]} or {'data_list': [...]} or a list, pickled or JSON.

    Nothing that a pickle names is run, numbers and arrays aside.

    Raises:
        DataError: missing, damaged, of another kind, empty, or a pickle with code in it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such file or folder; expected a folder of sweeps or infos (.pkl, .json)')
    try:
        with open(path, 'rb') as stream:
            pickled = _PlainUnpickler(stream, encoding='latin1')
            content = json.load(stream) if path.suffix == '.json' else pickled.load()
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


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, containers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what may be named."""
        if (module, name) == ('_codecs', 'encode'):
            return _latin1
        if (module, name) in PLAIN:
            return super().find_class(module, name)
        raise DataError(f'names {module}.{name}, which is not read: it could run code; expected plain infos')


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes of an array: how pickle's protocol 2, which mmcv writes, keeps them."""
    if encoding != 'latin1':
        raise DataError(f'has bytes in {encoding!r}, expected latin1')
    return text.encode('latin1')


def find_file(
    name: str, source: Path, root: str | Path | None = None, what: str = 'file', alone: Path | None = None
) -> Path:
    """Return a file that infos name.

    Args:
        name: path in the infos.
        source: the infos' file.
        root: folder of the data set; the infos' own folder is tried after it.
        what: the file is, for the message, DataError, where it is nowhere.
        alone: folder below that of the data set where names without a folder are.
    """
    path = Path(name)
    parts = path.parts
    below = next((parts[index:] for index, part in enumerate(parts) if part in PARTS), parts)
    folders = list(dict.fromkeys(Path(folder) for folder in (root, source.parent) if folder is not None))
    places = [path, Path(*below), *([alone / name] if alone and len(parts) == 1 else [])]
    for candidate in (path, *(folder / place for folder in folders for place in places)):
        if candidate.is_file():
            return candidate
    raise DataError(
        f'{source}: its {what} {name} is not there, nor under {" or ".join(map(str, folders))}; give the '
        f'folder of the data set (--data-root)'
    )


def camera_names(info: Mapping[str, Any], rule: MultiViewRule, source: Path) -> list[str]:
    """Return the cameras of a rule in its order; DataError where an info names no picture of one."""
    cameras = info.get('cams')
    cameras = cameras if isinstance(cameras, dict) else {}
    wanted = rule.cameras or tuple(cameras)[: rule.num_cameras]
    there = [cameras[name] for name in wanted if isinstance(cameras.get(name), dict)]
    found = [camera for camera in there if isinstance(camera.get('data_path'), str)]
    if len(found) != rule.num_cameras:
        raise DataError(
            f'{source}: an info has the cameras {sorted(map(str, cameras))}; expected data_path of '
            f'{", ".join(rule.cameras) or f"{rule.num_cameras} cameras"}'
        )
    return list(wanted)


@dataclasses.dataclass(frozen=True)
class RigFrame:
    """One frame of all cameras, as `StreamPetrOnnx.detect` and pictures take it.

    Attributes:
        name: token of the info, or its number.
        pictures: files, in the order of the cameras of the rule; None for one that is not there.
        intrinsics: (N, 3, 3) float64 of these pictures.
        lidar2cam: (N, 4, 4) float64, LiDAR frame to camera frame.
        ego_pose: (4, 4) float64, LiDAR frame to global frame.
        timestamp_s: seconds, absolute.
        scene_token: None where the info says none.
        info: as it was read.
        source: its file.
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

    @property
    def lidar2img(self) -> np.ndarray:
        """(N, 4, 4) float64, LiDAR frame to pixels of the pictures."""
        full = np.tile(np.eye(4), (len(self.intrinsics), 1, 1))
        full[:, :3, :3] = self.intrinsics
        return full @ self.lidar2cam

    def read_pictures(self) -> list[np.ndarray]:
        """Return N pictures (h, w, 3) uint8, BGR; of a camera whose picture is not there a black one.

        Raises:
            DataError: a file that is no picture, or none is there at all.
        """
        from mmdeploy_ext.inputs.pictures import read_image

        found = [path and read_image(path) for path in self.pictures]
        there = next((picture for picture in found if picture is not None), None)
        if there is None:
            raise DataError(f'{self.source}: {self.name} has the picture of no camera; expected one at least')
        return [np.zeros_like(there) if picture is None else picture for picture in found]


def read_frames(
    path: str | Path, rule: MultiViewRule, root: str | Path | None = None, missing: bool = False
) -> list[RigFrame]:
    """Return the frames of infos, scene by scene, each in the order of time.

    Args:
        path: infos of mmdet3d's kind (.pkl, .json) with `cams`.
        rule: of the model; says the cameras and their order.
        root: folder of the data set, where the pictures are not where the infos say.
        missing: take frames in which the picture of a camera is not there.

    Raises:
        DataError: infos that lack a camera, a calibration or a pose, or whose pictures are not there.
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

    for number, info in enumerate(read_infos(source)):
        try:
            frames.append(_frame(info, number, rule, source, picture))
        except Mm2OnnxError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{source}: info {number} does not fit ({type(error).__name__}: {error}); expected what '
                f"mmdet3d's create_data.py writes, with calibrations and poses"
            ) from error
    tokens = dict.fromkeys(frame.scene_token for frame in frames)
    scenes = {scene: place for place, scene in enumerate(tokens)}
    return sorted(frames, key=lambda frame: (scenes[frame.scene_token], frame.timestamp_s))


def _frame(
    info: Mapping[str, Any], number: int, rule: MultiViewRule, source: Path, picture: Callable
) -> RigFrame:
    cameras = [info['cams'][name] for name in camera_names(info, rule, source)]
    lidar_to_ego, ego_to_global = (
        _pose(info[f'{name}_rotation'], info[f'{name}_translation']) for name in ('lidar2ego', 'ego2global')
    )
    to_lidar = [_pose(c['sensor2lidar_rotation'], c['sensor2lidar_translation']) for c in cameras]
    return RigFrame(
        str(info.get('token', number)),
        tuple(map(picture, cameras)),
        np.array([camera['cam_intrinsic'] for camera in cameras], np.float64),
        invert_pose(np.stack(to_lidar)),
        ego_to_global @ lidar_to_ego,
        float(info['timestamp']) / 1e6,
        info.get('scene_token'),
        info,
        source,
    )


def _pose(rotation: Any, translation: Any) -> np.ndarray:
    """Return a (4, 4) float64 pose of a rotation, (3, 3) or a quaternion w x y z, and a translation (3,)."""
    pose, rotation = np.eye(4), np.asarray(rotation, np.float64)
    if rotation.shape == (4,):
        w, (x, y, z) = rotation[0], rotation[1:]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotation = np.eye(3) + 2 * (w * cross + cross @ cross) / (rotation @ rotation)
    pose[:3, :3], pose[:3, 3] = rotation, np.asarray(translation, np.float64)
    return pose
