"""A memory of known rows through StreamPETR's head, as autoware_camera_streampetr keeps them.

Needs onnx and ONNX Runtime. Source: autoware_camera_streampetr at 5e12a711, network.cpp:276-300, memory.cu
(the node copies the first rows of each memory to the next frame), and tier4/AWML 7a6ec07c,
StreamPETR/deploy/containers.py:140-200 (what the graph computes): facts, no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from mmdeploy_ext.runtime.contract_files import Ends

TOLERANCE = 1e-3
"""Of metres and seconds, beside numbers of a few tens."""


def memory_rules(file: str, model: onnx.ModelProto, ends: Ends) -> Iterator[Violation]:
    """Yield what a head of the right names and sizes does to the memory that the node does not expect."""
    from mmdeploy_ext.graph.run import run

    feeds = probe_feeds(ends)
    try:
        found = run(model, feeds)
    except Mm2OnnxError as error:
        said = f'{file}: a memory could not be sent through it: {" ".join(str(error).split())[:300]}'
        yield Violation(file, '', 'memory', said, WARNING)
        return
    for name, values in found.items():
        if not np.isfinite(values).all():
            said = f'{file}: gives {name} that is not finite of zeros and poses'
            yield Violation(file, name, 'memory', said)
    pose = feeds['data_ego_pose'][0]
    for kind, old in _expected(feeds, pose.astype(np.float64)).items():
        name = f'post_memory_{kind}'
        after, new = found[name], found[name].shape[1] - old.shape[1]
        if np.allclose(after[:, new:], old, rtol=1e-3, atol=TOLERANCE):
            continue
        why = f'rows {new} and later are not those of pre_memory, places by way of the poses'
        if np.allclose(after[:, : old.shape[1]], old, rtol=1e-3, atol=TOLERANCE):
            why = 'new rows stand behind the old; the node keeps the first ones'
        yield Violation(file, name, 'memory', f'{file}: {name}: {why}')
    yield from _new_rows(file, found, feeds, pose)


def probe_feeds(ends: Ends) -> dict[str, np.ndarray]:
    """Return zeros for the pictures, random rows of a memory, a pose, and the inverse of another."""
    random = np.random.default_rng(0)
    feeds = {name: np.zeros([size or 1 for size in shape], np.float32) for name, shape in ends.inputs.items()}
    for name in feeds:
        if name.startswith('pre_memory_'):
            feeds[name] = random.uniform(-1, 1, feeds[name].shape).astype(np.float32)
    feeds['data_ego_pose'][:] = _pose(0.3, 4.0, -2.0)
    # not the same pose: both inputs have to be used
    feeds['data_ego_pose_inv'][:] = np.linalg.inv(_pose(0.2, 3.0, 1.0))
    rows = feeds['pre_memory_egopose'].shape[1]
    moves = np.tile(np.eye(4, dtype=np.float32), (1, rows, 1, 1))
    moves[..., :3, 3] = random.uniform(-5, 5, (1, rows, 3))
    feeds['pre_memory_egopose'] = moves
    feeds['pre_memory_reference_point'] = random.uniform(-20, 20, (1, rows, 3)).astype(np.float32)
    feeds['pre_memory_timestamp'] = random.uniform(0, 2, (1, rows, 1)).astype(np.float32)
    return feeds


def _pose(turn: float, x: float, y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    pose[:3, 3] = x, y, 0.5
    return pose


def _expected(feeds: dict[str, np.ndarray], pose: np.ndarray) -> dict[str, np.ndarray]:
    """Return the old rows after a frame: places go to the vehicle and back, the others stay as they are."""
    back = pose @ feeds['data_ego_pose_inv'][0].astype(np.float64)
    places = feeds['pre_memory_reference_point'].astype(np.float64)
    return dict(
        embedding=feeds['pre_memory_embedding'],
        reference_point=places @ back[:3, :3].T + back[:3, 3],
        timestamp=feeds['pre_memory_timestamp'],
        egopose=back @ feeds['pre_memory_egopose'].astype(np.float64),
        velo=feeds['pre_memory_velo'],
    )


def _new_rows(
    file: str, found: dict[str, np.ndarray], feeds: dict[str, np.ndarray], pose: np.ndarray
) -> Iterator[Violation]:
    """Yield new rows that are not of this frame: of age 0 and of its pose."""
    new = found['post_memory_egopose'].shape[1] - feeds['pre_memory_egopose'].shape[1]
    if np.abs(found['post_memory_timestamp'][:, :new]).max(initial=0) > TOLERANCE:
        said = f'{file}: post_memory_timestamp of the {new} new rows is not 0; the node takes the time off'
        yield Violation(file, 'post_memory_timestamp', 'memory', said)
    if not np.allclose(found['post_memory_egopose'][:, :new], pose, atol=TOLERANCE):
        said = f'{file}: post_memory_egopose of the {new} new rows is not data_ego_pose'
        yield Violation(file, 'post_memory_egopose', 'memory', said)
