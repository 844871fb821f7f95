"""Real key frames of ../shared/data/nuscenes as info files that the ordinary data set reads; never committed.

Tests that use them skip where they are not.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

NUSCENES = Path(__file__).resolve().parents[3] / 'shared/data/nuscenes'
SCENE_PAUSE_US = 5_000_000


def read_infos(name: str) -> list[dict[str, Any]]:
    """Return the infos of a file, chained in scenes; the test is skipped where it is not."""
    path = NUSCENES / name
    if not path.is_file():
        pytest.skip(f'skipped: ../shared/data/nuscenes/{name} not found')
    with open(path, 'rb') as stream:
        infos = sorted(pickle.load(stream)['infos'], key=lambda info: info['timestamp'])
    scene, frame, last = -1, 0, -SCENE_PAUSE_US
    for info in infos:
        if info['timestamp'] - last >= SCENE_PAUSE_US:
            scene, frame = scene + 1, 0
        info.update(scene_token=f'scene {scene}', frame_idx=frame, prev='', next='')
        frame, last = frame + 1, info['timestamp']
    return infos


def scene_0103(folder: Path) -> Path:
    """Write the info file of four key frames with their real pictures and return its path."""
    infos = read_infos('scene-0103/infos_4kf.pkl')
    for info in infos:
        for name, camera in info['cams'].items():
            file = NUSCENES / 'scene-0103/samples' / name / Path(camera['data_path']).name
            camera['data_path'] = str(file)
    path = folder / 'infos_val.pkl'
    with open(path, 'wb') as stream:
        pickle.dump(dict(infos=infos, metadata=dict(version='v1.0-mini')), stream)
    return path
