"""nuScenes' tables, real or generated: loaded by the devkit, refused in one line where they are broken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmdeploy_ext.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

CAMERAS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
"""In the order of mmdet3d's info files."""
LIDAR = 'LIDAR_TOP'
SPLITS = {'v1.0-trainval': ('train', 'val'), 'v1.0-mini': ('mini_train', 'mini_val'), 'v1.0-test': ('test',)}
TABLES = (
    'category', 'attribute', 'visibility', 'instance', 'sensor', 'calibrated_sensor', 'ego_pose', 'log',
    'scene', 'sample', 'sample_data', 'sample_annotation', 'map',
)  # fmt: skip


def check_root(root: Path, version: str) -> None:
    """Refuse a folder that is no nuScenes data set of that version, before the devkit reads it.

    Raises:
        UsageError: The version is unknown.
        DataError: The folder or a table is missing.
    """
    if version not in SPLITS:
        raise UsageError(f'--version: got {version!r}, expected one of {", ".join(SPLITS)}')
    if not root.is_dir():
        raise DataError(f'{root}: no such folder; --root-path names the one with {version}/ and samples/')
    if not (root / version).is_dir():
        found = sorted(path.name for path in root.glob('v*') if path.is_dir())
        raise DataError(
            f'{root / version}: no such folder; versions there: {", ".join(found) or "none"} '
            f'(choose with --version)'
        )
    missing = [name for name in TABLES if not (root / version / f'{name}.json').is_file()]
    if missing:
        raise DataError(
            f'{root / version}: the tables {", ".join(missing)} are missing; '
            f'a nuScenes version has {len(TABLES)} tables, unpack its metadata again'
        )


def load_tables(root: Path, version: str) -> NuScenes:
    """Load all tables with the devkit; raises as `check_root` and `whole_tables`."""
    check_root(root, version)
    from nuscenes.nuscenes import NuScenes

    with whole_tables(root / version):
        return NuScenes(version=version, dataroot=str(root), verbose=False)


@contextlib.contextmanager
def whole_tables(folder: Path) -> Iterator[None]:
    """Turn the devkit's errors inside the block into a DataError about the tables in `folder`."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise DataError(f'{_damaged_table(folder)}: is not valid JSON ({error})') from error
    except KeyError as error:
        raise DataError(f'{folder}: the tables do not fit together, no record or field {error}') from error
    except AssertionError as error:  # the devkit's own words: "map mask ... does not exist"
        raise DataError(f'{folder}: {error}') from error


def _damaged_table(folder: Path) -> Path:
    for name in TABLES:
        try:
            json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        except ValueError:
            return folder / f'{name}.json'
    return folder


def scene_samples(nusc: NuScenes, scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the key frames of a scene in the order of time."""
    samples, token = [], scene['first_sample_token']
    while token:
        samples.append(nusc.get('sample', token))
        token = samples[-1]['next']
    return samples


def check_sample(nusc: NuScenes, sample: dict[str, Any]) -> None:
    """Refuse a key frame that lacks a sensor or a file."""
    for channel in (*CAMERAS, LIDAR):
        if channel not in sample['data']:
            raise DataError(f'{nusc.version}/sample_data.json: key frame {sample["token"]} has no {channel}')
        path = Path(nusc.get_sample_data_path(sample['data'][channel]))
        if not path.is_file():
            raise DataError(
                f'{path}: no such file, but {nusc.version}/sample_data.json lists it '
                f'(key frame {sample["token"]}); unpack the set again'
            )


def present_scenes(nusc: NuScenes, names: list[str]) -> list[dict[str, Any]]:
    """Give the scenes of a split whose first sweep is there: parts of nuScenes may be unpacked alone."""
    wanted, present = set(names), []
    for scene in nusc.scene:
        data = nusc.get('sample', scene['first_sample_token'])['data']
        there = LIDAR not in data or Path(nusc.get_sample_data_path(data[LIDAR])).is_file()
        if scene['name'] in wanted and there:
            present.append(scene)
    return present


def refuse_empty(nusc: NuScenes) -> NoReturn:
    """Raise DataError: why no scene of any split is there."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    known = {name for split in SPLITS[nusc.version] for name in splits[split]}
    if not any(scene['name'] in known for scene in nusc.scene):
        raise DataError(
            f'{nusc.dataroot}/{nusc.version}: none of the {len(nusc.scene)} scenes is in the split lists of '
            f'the devkit ({", ".join(SPLITS[nusc.version])})'
        )
    raise DataError(
        f'{nusc.dataroot}: none of the {len(nusc.scene)} scenes has its first {LIDAR} sweep; '
        f'unpack samples/ beside {nusc.version}/'
    )
