"""Synthetic boxes and memories through a graph: what it does with them, whatever its weights are.

Needs onnx and ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from mmdeploy_ext.graph.io.index import Index

LEARNT = ('Conv', 'ConvTranspose', 'MatMul', 'Gemm', 'BatchNormalization')
"""Operators of a network; what follows the last of them only rearranges what the head gives."""
SINE, COSINE = 0.6, -0.8
SIZES = 0.1, 0.2, 0.3
KEPT, TURNED = 'unchanged', 'converted'
"""What a graph does with the boxes of mmdet3d 1.0: they are right for the node once they are converted."""


def convention_rules(file: str, model: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[Violation]:
    """Yield a box convention of CenterPoint's head that no training has.

    The node takes the boxes of mmdet3d 0.x. A model of mmdet3d 1.0 or later needs `dim` with its first two
    rows swapped and `rot` (sine, cosine) as (-cosine, -sine); the sizes and angles that come out say whether
    a graph has that. `outputs` are the names of heatmap, reg, height, dim, rot, vel.
    """
    dim, rot = outputs[3:5]
    done = {dim: _what_of_dim(model, dim), rot: _what_of_rot(model, rot)}
    for name, what in done.items():
        if not what:
            said = f'{file}: what {name} does with boxes could not be probed; look at it yourself'
            yield Violation(file, name, 'convention', said, WARNING)
        elif what not in (KEPT, TURNED):
            yield Violation(file, name, 'convention', f'{file}: of synthetic boxes {name} {what}')
    if set(done.values()) == {KEPT, TURNED}:
        said = ', '.join(f'{name} is {what}' for name, what in done.items())
        said = f'{file}: of synthetic boxes {said}; sizes and angles have to be of one convention'
        yield Violation(file, rot, 'convention', said)
    elif set(done.values()) == {KEPT}:
        said = (
            f'{file}: dim and rot leave the network as they are: right of a model trained with mmdet3d 0.x '
            f'alone; of 1.0 or later swap dim to [1, 0, 2] and give rot as (-cosine, -sine)'
        )
        yield Violation(file, rot, 'convention', said, WARNING)


def _what_of_dim(model: onnx.ModelProto, name: str) -> str:
    given = np.array([*SIZES, -1.1, -1.2, -1.3], np.float32)
    found = _through(model, name, given)
    if found is None:
        return ''
    order = [int(np.abs(given - value).argmin()) for value in found]
    if not np.allclose(given[order], found, atol=1e-5):
        return f'comes out as {found.tolist()} of {given[: len(found)].tolist()}: no order of the same sizes'
    said = f'comes out in the order {order}, expected [0, 1, 2] or, of mmdet3d 1.0, [1, 0, 2]'
    return _known(found, given, given[[1, 0, 2, 4, 3, 5]]) or said


def _what_of_rot(model: onnx.ModelProto, name: str) -> str:
    given = np.array([SINE, COSINE, -1.1, -1.2], np.float32)
    found = _through(model, name, given)
    if found is None:
        return ''
    said = (
        f'comes out as {found.tolist()} of sine {SINE}, cosine {COSINE} and variances -1.1, -1.2; expected '
        f'them unchanged or, of mmdet3d 1.0, -cosine, -sine and the variances swapped'
    )
    return _known(found, given, np.float32([-COSINE, -SINE, -1.2, -1.1])) or said


def _known(found: np.ndarray, kept: np.ndarray, turned: np.ndarray) -> str:
    known = ((KEPT, kept), (TURNED, turned))
    return next((what for what, one in known if np.allclose(one[: len(found)], found, atol=1e-5)), '')


def _through(model: onnx.ModelProto, name: str, values: np.ndarray) -> np.ndarray | None:
    """Return what becomes of channels behind the last layer that makes an output; None where it is unclear.

    The output is (1, C, H, W), of values the first C are given, one for each channel.
    """
    from mmdeploy_ext.graph.io.index import Index
    from mmdeploy_ext.graph.passes.extract import cut
    from mmdeploy_ext.graph.run import run
    from mmdeploy_ext.runtime.contract_files import shape_of

    index = Index(model)
    (axes,) = (shape_of(value) for value in model.graph.output if value.name == name)
    starts, channels = _learnt(index, name), axes[1] if len(axes) == 4 else None
    if len(starts) != 1 or channels is None or channels > len(values):
        return None
    if starts == [name]:
        return values[:channels]
    given = np.broadcast_to(values[:channels, None, None], (1, channels, 2, 2))
    try:
        tail = cut(model, starts, [name])
        for value in (*tail.graph.input, *tail.graph.output):
            value.type.tensor_type.ClearField('shape')
        del tail.graph.value_info[:]
        found = run(tail, {starts[0]: np.ascontiguousarray(given)})[name]
    except Mm2OnnxError:
        return None
    whole = found.ndim == 4 and (found == found[:, :, :1, :1]).all()
    return found[0, :, 0, 0] if whole and found.shape[1] == channels else None


def _learnt(index: Index, name: str) -> list[str]:
    """Return the tensors of the last learnt layers above an output, or graph inputs where there are none."""
    starts: dict[str, None] = {}
    waiting, visited = [name], set()
    while waiting:
        tensor = waiting.pop()
        if tensor in visited:
            continue
        visited.add(tensor)
        node = index.producer(tensor)
        if node is not None and index.nodes[node].op_type not in LEARNT:
            waiting += [one for one in index.reads(node) if one]
        elif node is not None or tensor in index.inputs:
            starts[tensor] = None
    return list(starts)
