"""Runs a folder's graphs in ONNX Runtime, in a process with a time limit."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.folder_rules import fits, graph_tensors, shape_of, shape_text
from mmdeploy_ext.base.errors import Mm2OnnxError, one_line
from mmdeploy_ext.base.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import onnx

    from mmdeploy_ext.graphs.io.index import Index


# ---- synthetic boxes through CenterPoint's head, to find its box convention for any weights


LAYERS = ('Conv', 'ConvTranspose', 'MatMul', 'Gemm', 'BatchNormalization')
"""Operators of a network; nodes behind the last one only rearrange."""
SINE, COSINE = 0.6, -0.8
"""Direction of the synthetic boxes."""
UNCHANGED, CONVERTED = 'unchanged', 'converted'
"""Treatments of mmdet3d 1.0's boxes; the node needs converted ones."""


def convention_rules(file: str, model: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[Violation]:
    """Yield the violation of an unknown box convention of CenterPoint's head."""
    dim, rot = outputs[3:5]
    sizes, angles = np.float32([0.1, 0.2, 0.3, -1.1, -1.2, -1.3]), np.float32([SINE, COSINE, -1.1, -1.2])
    found = {
        dim: _treatment(model, dim, sizes, sizes[[1, 0, 2, 4, 3, 5]]),
        rot: _treatment(model, rot, angles, np.float32([-COSINE, -SINE, -1.2, -1.1])),
    }
    for name, treatment in found.items():
        if not treatment:
            message = f'{file}: could not test how {name} transforms boxes; check it yourself'
            yield Violation(file, name, 'convention', message, WARNING)
        elif treatment not in (UNCHANGED, CONVERTED):
            yield Violation(file, name, 'convention', f'{file}: for synthetic boxes {name} {treatment}')
    if set(found.values()) == {UNCHANGED, CONVERTED}:
        message = ', '.join(f'{name} is {treatment}' for name, treatment in found.items())
        message = f'{file}: for synthetic boxes {message}; sizes and angles must have one convention'
        yield Violation(file, rot, 'convention', message)
    elif set(found.values()) == {UNCHANGED}:
        message = (
            f'{file}: dim and rot are unchanged, which is right only for a model trained with mmdet3d '
            '0.x; for 1.0 or later swap dim to [1, 0, 2] and return rot as (-cosine, -sine)'
        )
        yield Violation(file, rot, 'convention', message, WARNING)


def _treatment(model: onnx.ModelProto, name: str, fed: np.ndarray, converted: np.ndarray) -> str:
    output = _behind_last_layer(model, name, fed)
    if output is None:
        return ''
    for treatment, expected in ((UNCHANGED, fed), (CONVERTED, converted)):
        if np.allclose(expected[: len(output)], output, atol=1e-5):
            return treatment
    expected = fed[: len(output)].tolist()
    return f'turns {expected} into {output.tolist()}; expected no change, or the conversion for mmdet3d 1.0'


def _behind_last_layer(model: onnx.ModelProto, name: str, values: np.ndarray) -> np.ndarray | None:
    from mmdeploy_ext.graphs.io.index import Index
    from mmdeploy_ext.graphs.passes.extract import cut
    from mmdeploy_ext.graphs.run import run

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


# ---- process

SECONDS = 300
"""Time limit of a file."""


def trial_rules(trials: Sequence[tuple[Path, bool]]) -> list[Violation]:
    """Return the violations that ONNX Runtime and the probe find."""
    violations: list[Violation] = []
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        for path, has_boxes in trials:
            try:
                violations += pool.apply_async(try_file, (path, has_boxes)).get(SECONDS)
            except multiprocessing.TimeoutError:
                text = f'{path.name}: ONNX Runtime could not load and run it within {SECONDS} s'
                return [*violations, Violation(path.name, '', 'load', text)]
    return violations


def try_file(path: Path, has_boxes: bool) -> list[Violation]:
    from mmdeploy_ext.graphs.io.files import load

    file, model = path.name, load(path)
    try:
        violations = list(_run_on_zeros(file, model))
    except Mm2OnnxError as error:
        return [Violation(file, '', 'load', f'{file}: {one_line(error)[:300]}')]
    if violations or not has_boxes:
        return violations
    return list(convention_rules(file, model, [value.name for value in model.graph.output]))


def _run_on_zeros(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    from mmdeploy_ext.graphs.run import run

    tensors, feeds = graph_tensors(model), {}
    for name, shape in tensors.inputs.items():
        dtype = tensor_dtype_to_np_dtype(TensorProto.DataType.Value(tensors.types[name]))
        feeds[name] = np.zeros([size or 1 for size in shape], dtype)
    for name, values in run(model, feeds).items():
        stated = tensors.outputs[name]
        if not fits(values.shape, stated):
            text = (
                f'{file}: for inputs of zeros {name} is {shape_text(values.shape)}, but the graph declares '
            )
            yield Violation(file, name, 'shape', text + shape_text(stated))
        elif not np.isfinite(values).all():
            yield Violation(file, name, 'not-finite', f'{file}: {name} is not finite for inputs of zeros')
