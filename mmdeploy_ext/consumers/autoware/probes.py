"""Probes: synthetic boxes and memories through a graph, whose treatment of them depends on no weight.

`convention_rules` sends boxes through CenterPoint's head, `memory_rules` a memory of known rows through
StreamPETR's, as autoware_camera_streampetr keeps them. Needs onnx and ONNX Runtime.

Source: autoware_camera_streampetr at 5e12a711, network.cpp:276-300, memory.cu (the node copies the first rows
of each memory to the next frame), and tier4/AWML 7a6ec07c, StreamPETR/deploy/containers.py:140-200 (what the
graph computes): facts, no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.graph_tensors import shape_of
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from mmdeploy_ext.consumers.graph_tensors import GraphTensors
    from mmdeploy_ext.graph.io.index import Index

LAYERS = ('Conv', 'ConvTranspose', 'MatMul', 'Gemm', 'BatchNormalization')
"""Operators of a network; what follows the last of them only rearranges what the head gives."""
SINE, COSINE = 0.6, -0.8
"""Direction of the synthetic boxes."""
UNCHANGED, CONVERTED = 'unchanged', 'converted'
"""Treatments of the boxes of mmdet3d 1.0: they are right for the node once they are converted."""
TOLERANCE = 1e-3
"""Absolute tolerance of all values of a memory: metres, seconds, entries of poses and of embeddings."""


# ---- boxes


def convention_rules(file: str, model: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[Violation]:
    """Yield the violation of a box convention of CenterPoint's head that no training has.

    The node takes the boxes of mmdet3d 0.x. A model of mmdet3d 1.0 or later needs `dim` with its first two
    rows swapped and `rot` (sine, cosine) as (-cosine, -sine); the sizes and angles that come out tell whether
    a graph has that. `file` is its name; `outputs` are the names of heatmap, reg, height, dim, rot, vel.
    """
    dim, rot = outputs[3:5]
    sizes, angles = np.float32([0.1, 0.2, 0.3, -1.1, -1.2, -1.3]), np.float32([SINE, COSINE, -1.1, -1.2])
    found = {
        dim: _treatment(model, dim, sizes, sizes[[1, 0, 2, 4, 3, 5]]),
        rot: _treatment(model, rot, angles, np.float32([-COSINE, -SINE, -1.2, -1.1])),
    }
    for name, treatment in found.items():
        if not treatment:
            message = f'{file}: what {name} does with boxes could not be probed; look at it yourself'
            yield Violation(file, name, 'convention', message, WARNING)
        elif treatment not in (UNCHANGED, CONVERTED):
            yield Violation(file, name, 'convention', f'{file}: of synthetic boxes {name} {treatment}')
    if set(found.values()) == {UNCHANGED, CONVERTED}:
        message = ', '.join(f'{name} is {treatment}' for name, treatment in found.items())
        message = f'{file}: of synthetic boxes {message}; sizes and angles have to be of one convention'
        yield Violation(file, rot, 'convention', message)
    elif set(found.values()) == {UNCHANGED}:
        message = (
            f'{file}: dim and rot leave the network as they are: right of a model trained with mmdet3d 0.x '
            f'alone; of 1.0 or later swap dim to [1, 0, 2] and give rot as (-cosine, -sine)'
        )
        yield Violation(file, rot, 'convention', message, WARNING)


def _treatment(model: onnx.ModelProto, name: str, fed: np.ndarray, converted: np.ndarray) -> str:
    """Return what becomes of values behind the last layer; '' if it is unclear."""
    output = _behind_last_layer(model, name, fed)
    if output is None:
        return ''
    for treatment, expected in ((UNCHANGED, fed), (CONVERTED, converted)):
        if np.allclose(expected[: len(output)], output, atol=1e-5):
            return treatment
    expected = fed[: len(output)].tolist()
    return f'comes out as {output.tolist()} of {expected}; expected them unchanged or as mmdet3d 1.0 needs'


def _behind_last_layer(model: onnx.ModelProto, name: str, values: np.ndarray) -> np.ndarray | None:
    """Return the values of an output if the last layer above it had these values; None if it is unclear.

    The output is (1, C, H, W), of values the first C are fed, one for each channel.
    """
    from mmdeploy_ext.graph.io.index import Index
    from mmdeploy_ext.graph.passes.extract import cut
    from mmdeploy_ext.graph.run import run

    index = Index(model)
    (axes,) = (shape_of(value) for value in model.graph.output if value.name == name)
    starts, channels = _last_layers(index, name), axes[1] if len(axes) == 4 else None
    if len(starts) != 1 or channels is None or channels > len(values):
        return None
    if starts == [name]:
        return values[:channels]
    fed = np.broadcast_to(values[:channels, None, None], (1, channels, 2, 2))
    try:
        tail = cut(model, starts, [name])
        for value in (*tail.graph.input, *tail.graph.output):
            value.type.tensor_type.ClearField('shape')
        del tail.graph.value_info[:]
        output = run(tail, {starts[0]: np.ascontiguousarray(fed)})[name]
    except Mm2OnnxError:
        return None
    is_uniform = output.ndim == 4 and (output == output[:, :, :1, :1]).all()
    return output[0, :, 0, 0] if is_uniform and output.shape[1] == channels else None


def _last_layers(index: Index, name: str) -> list[str]:
    """Return the tensors of the last learnt layers above an output, or graph inputs if there are none."""
    starts: dict[str, None] = {}
    pending, visited = [name], set()
    while pending:
        tensor = pending.pop()
        if tensor in visited:
            continue
        visited.add(tensor)
        node = index.producer(tensor)
        if node is not None and index.nodes[node].op_type not in LAYERS:
            pending += [source for source in index.reads(node) if source]
        elif node is not None or tensor in index.inputs:
            starts[tensor] = None
    return list(starts)


# ---- memories


def memory_rules(file: str, model: onnx.ModelProto, tensors: GraphTensors) -> Iterator[Violation]:
    """Yield a violation for each change of the memory by StreamPETR's head that the node does not expect.

    The head runs once, on features of zeros, a random memory and two poses. `file` is its name; `model` has
    passed the checks of names and sizes, and `tensors` are those of `graph_tensors(model)`.
    """
    from mmdeploy_ext.graph.run import run

    feeds = _memory_feeds(tensors)
    outputs = run(model, feeds)
    pose = feeds['data_ego_pose'][0]
    for field, old in _old_rows(feeds, pose.astype(np.float64)).items():
        name = f'post_memory_{field}'
        memory, new_count = outputs[name], outputs[name].shape[1] - old.shape[1]
        if np.allclose(memory[:, new_count:], old, rtol=1e-3, atol=TOLERANCE):
            continue
        problem = f'rows {new_count} and later are not those of pre_memory, places by way of the poses'
        if np.allclose(memory[:, : old.shape[1]], old, rtol=1e-3, atol=TOLERANCE):
            problem = 'new rows stand behind the old; the node keeps the first ones'
        yield Violation(file, name, 'memory', f'{file}: {name}: {problem}')
    # new rows have to be of this frame: of age 0 and of its pose
    new_count = outputs['post_memory_egopose'].shape[1] - feeds['pre_memory_egopose'].shape[1]
    for name, expected, text in (
        ('post_memory_timestamp', 0, '0; the node takes the time off'),
        ('post_memory_egopose', pose, 'data_ego_pose'),
    ):
        if not np.allclose(outputs[name][:, :new_count], expected, atol=TOLERANCE):
            message = f'{file}: {name} of the {new_count} new rows is not {text}'
            yield Violation(file, name, 'memory', message)


def _memory_feeds(tensors: GraphTensors) -> dict[str, np.ndarray]:
    """Return zeros for the features of the cameras and their embeddings, a random memory, and two poses.

    `data_ego_pose_inv` is the inverse of another pose than `data_ego_pose`, so that the memory moves.
    """
    random = np.random.default_rng(0)
    feeds = {
        name: np.zeros([size or 1 for size in shape], np.float32) for name, shape in tensors.inputs.items()
    }
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


def _pose(yaw: float, x: float, y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = x, y, 0.5
    return pose


def _old_rows(feeds: dict[str, np.ndarray], pose: np.ndarray) -> dict[str, np.ndarray]:
    """Return the old rows after a frame: places go to the vehicle and back, the others stay as they are."""
    motion = pose @ feeds['data_ego_pose_inv'][0].astype(np.float64)
    points = feeds['pre_memory_reference_point'].astype(np.float64)
    return dict(
        embedding=feeds['pre_memory_embedding'],
        reference_point=points @ motion[:3, :3].T + motion[:3, 3],
        timestamp=feeds['pre_memory_timestamp'],
        egopose=motion @ feeds['pre_memory_egopose'].astype(np.float64),
        velo=feeds['pre_memory_velo'],
    )
