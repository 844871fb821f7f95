"""Faults in one node or one constant: each function puts one into a draft and returns where, and what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import all_tensors
from mutation_sites import FLOATS, NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft

SWAPS = (
    *(('Add', 'Sub'), ('Sub', 'Add'), ('Mul', 'Div'), ('Div', 'Mul'), ('Add', 'Mul'), ('Mul', 'Add')),
    *(('Max', 'Min'), ('Min', 'Max'), ('Less', 'LessOrEqual'), ('LessOrEqual', 'Less')),
    *(('Greater', 'GreaterOrEqual'), ('GreaterOrEqual', 'Greater'), ('Greater', 'Less'), ('Less', 'Greater')),
    *(
        ('Floor', 'Ceil'),
        ('Ceil', 'Floor'),
        ('Floor', 'Round'),
        ('Round', 'Floor'),
        ('And', 'Or'),
        ('Or', 'And'),
    ),
    *(('Relu', 'Sigmoid'), ('Relu', 'Identity'), ('Relu', 'LeakyRelu'), ('Relu', 'Softplus')),
    *(('Sigmoid', 'HardSigmoid'), ('Sigmoid', 'Tanh'), ('Exp', 'Softplus'), ('Sqrt', 'Abs'), ('Sin', 'Cos')),
    *(('Cos', 'Sin'), ('ReduceMax', 'ReduceMin'), ('ReduceMin', 'ReduceMax'), ('ReduceSum', 'ReduceMean')),
    *(
        ('ReduceMean', 'ReduceSum'),
        ('MaxPool', 'AveragePool'),
        ('AveragePool', 'MaxPool'),
        ('Not', 'Identity'),
    ),
    *(('Softmax', 'LogSoftmax'), ('Erf', 'Tanh'), ('Tanh', 'Erf'), ('Neg', 'Abs'), ('Abs', 'Identity')),
    *(('Log', 'Abs'), ('Xor', 'Or'), ('Clip', 'Identity'), ('Mod', 'Div'), ('Equal', 'GreaterOrEqual')),
    *(('SparseConvolution', 'Convolution'), ('ScatterDense', 'Scatter')),
)
"""Operators and others that take the same inputs; attributes that the other one lacks are left out."""
FLAGS = (
    *('keepdims', 'exclusive', 'reverse', 'transA', 'transB', 'ceil_mode', 'allowzero', 'largest', 'sorted'),
    *('align_corners', 'center_point_box', 'exclude_outside', 'subm', 'inverse', 'transposed'),
)
STRINGS = dict(
    mode=('nearest', 'linear', 'cubic', 'bilinear', 'bicubic', 'constant', 'edge', 'reflect', 'avg', 'max'),
    coordinate_transformation_mode=('half_pixel', 'align_corners', 'asymmetric', 'pytorch_half_pixel'),
    nearest_mode=('floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil'),
    padding_mode=('zeros', 'border', 'reflection'),
    auto_pad=('SAME_UPPER', 'SAME_LOWER', 'VALID', 'NOTSET'),
    reduction=('none', 'add', 'mul', 'max'),
    approximate=('none', 'tanh'),
    direction=('LEFT', 'RIGHT', 'forward', 'reverse'),
    format=('xyz', 'zyx'),
    activation=('ReLU', 'None'),
    precision=('fp16', 'int8'),
    output_precision=('fp16', 'int8'),
    rulebook=('subm0', 'subm1', 'subm2', 'spconv2', 'spconv3'),
)


def operator(draft: Draft) -> tuple[str, str]:
    """Let a node have another operator of the same inputs."""
    graph = draft.graph()
    known = {old for old, _ in SWAPS}
    node = draft.pick(node for node in graph.node if node.op_type in known)
    where = draft.label(graph, node)
    new = draft.pick(other for old, other in SWAPS if old == node.op_type)
    if new in ('Identity', 'Abs'):
        del node.input[1:]
    elif new == 'Softplus' or new == 'Sigmoid':
        node.ClearField('attribute')
    old, node.op_type = node.op_type, new
    _keep_known_attributes(draft.model, node)
    return where, f'{old} -> {new}'


def _keep_known_attributes(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')), 1)
    if onnx.defs.has(node.op_type, version, ''):
        allowed = onnx.defs.get_schema(node.op_type, version, '').attributes
        kept = [entry for entry in node.attribute if entry.name in allowed]
        node.ClearField('attribute')
        node.attribute.extend(kept)


def attribute(draft: Draft) -> tuple[str, str]:
    """Change one attribute of a node, by one step, by a factor, or to another legal value."""
    graph = draft.graph()
    kinds = (
        AttributeProto.INT,
        AttributeProto.FLOAT,
        AttributeProto.STRING,
        AttributeProto.INTS,
        AttributeProto.FLOATS,
    )
    names = sorted(
        {
            (node.op_type, entry.name)
            for node in graph.node
            for entry in node.attribute
            if entry.type in kinds and node.op_type != 'Constant'
        }
    )
    op_type, name = draft.pick(names)  # first what, then where: the rare ones come up too
    node, entry = draft.pick(
        (node, entry)
        for node in graph.node
        if node.op_type == op_type
        for entry in node.attribute
        if entry.name == name
    )
    old = helper.get_attribute_value(entry)
    new = _other_value(draft, entry, old)
    entry.CopyFrom(helper.make_attribute(name, new, attr_type=entry.type))
    return draft.label(graph, node), f'{name}={old!r} -> {new!r}'


def _other_value(draft: Draft, entry: AttributeProto, old: object) -> object:
    """Return another value for an attribute."""
    if entry.type == AttributeProto.FLOAT:
        return (
            old * float(draft.pick((10.0, 0.1, 1.001, 1.01, -1.0))) if old else float(draft.pick((1e-6, 1.0)))
        )
    if entry.type == AttributeProto.STRING:
        legal = STRINGS.get(entry.name, ())
        return draft.pick(text.encode() for text in legal if text.encode() != old)
    if entry.type == AttributeProto.INT:
        if entry.name in FLAGS:
            return 1 - min(old, 1)
        if entry.name == 'to':
            wanted = (
                TensorProto.FLOAT16,
                TensorProto.FLOAT,
                TensorProto.INT32,
                TensorProto.INT64,
                TensorProto.BOOL,
            )
            return draft.pick(kind for kind in wanted if kind != old)
        return old + draft.pick((-1, 1))
    values = list(old)
    place = draft.pick(range(len(values)))
    if entry.type == AttributeProto.FLOATS:
        values[place] *= draft.pick((1.001, 2.0, -1.0))
    elif entry.name == 'perm' and len(values) > 1:
        other = draft.pick(index for index in range(len(values)) if index != place)
        values[place], values[other] = values[other], values[place]
    else:
        values[place] += draft.pick((-1, 1))
    return values


def _tensor(draft: Draft, floats_only: bool) -> TensorProto:
    """Return a constant: initializer, Constant node or attribute, of the main graph or of a body."""
    tensors = [
        tensor
        for tensor in all_tensors(draft.model)
        if np.prod(tensor.dims) and tensor.data_type != TensorProto.STRING
    ]
    floats = [tensor for tensor in tensors if tensor.data_type in FLOATS]
    if floats_only or (floats and draft.random.random() < 0.6):
        tensors = floats
    return draft.pick(tensors)


def write(tensor: TensorProto, array: np.ndarray) -> None:
    """Give a tensor other values; its name and sizes stay."""
    changed = numpy_helper.from_array(np.ascontiguousarray(array).reshape(tuple(tensor.dims)), tensor.name)
    tensor.CopyFrom(changed)


def constant_label(draft: Draft, tensor: TensorProto) -> str:
    """Return what to call a constant."""
    if tensor.name:
        return tensor.name
    for node in draft.main.node:
        if any(entry.HasField('t') and entry.t is tensor for entry in node.attribute):
            return node.output[0]
    return f'{types.dtype(tensor.data_type)} constant {list(tensor.dims)}'


def value(draft: Draft) -> tuple[str, str]:
    """Change a constant visibly: one value, all by a factor, one row, two rows."""
    tensor = _tensor(draft, floats_only=False)
    array = numpy_helper.to_array(tensor).copy()
    where = constant_label(draft, tensor)
    if array.dtype == bool:
        array.flat[draft.pick(range(array.size))] ^= True
        detail = 'one value turned'
    elif array.dtype.kind in 'iu':
        place, step = draft.pick(range(array.size)), draft.pick((-1, 1))
        array.flat[place] += array.dtype.type(step)
        detail = f'[{place}] {step:+d}'
    else:
        detail = draft.pick(CHANGES)
        with np.errstate(over='ignore'):
            array = CHANGES[detail](draft, array)
    write(tensor, array)
    return where, detail


def _one(draft: Draft, array: np.ndarray, factor: float) -> np.ndarray:
    place = draft.pick(range(array.size))
    array.flat[place] = array.flat[place] * factor if array.flat[place] else 1.0
    return array


def _row(draft: Draft, array: np.ndarray, swap: bool) -> np.ndarray:
    if array.ndim < 1 or len(array) < 2:
        raise NoSite
    one, two = draft.random.permutation(len(array))[:2]
    if swap:
        array[[one, two]] = array[[two, one]]
    else:
        array[one] = 0
    return array


CHANGES = {
    'one value x 1.001': lambda draft, array: _one(draft, array, 1.001),
    'one value x 1.00002': lambda draft, array: _one(draft, array, 1.00002),
    'one value negated': lambda draft, array: _one(draft, array, -1.0),
    'one value x 2': lambda draft, array: _one(draft, array, 2.0),
    'all x 1.00002': lambda draft, array: array * array.dtype.type(1.00002),
    'all x 1.001': lambda draft, array: array * array.dtype.type(1.001),
    'all negated': lambda draft, array: -array,
    'a row of zeros': lambda draft, array: _row(draft, array, False),
    'two rows swapped': lambda draft, array: _row(draft, array, True),
}


def exchange(draft: Draft) -> tuple[str, str]:
    """Let two constants of the same type and sizes have each other's values."""
    groups: dict[tuple[int, ...], list[TensorProto]] = {}
    for tensor in all_tensors(draft.model):
        if np.prod(tensor.dims) and tensor.data_type != TensorProto.STRING:
            groups.setdefault((tensor.data_type, *tensor.dims), []).append(tensor)
    group = draft.pick(group for group in groups.values() if len(group) > 1)
    first, second = (group[index] for index in draft.random.permutation(len(group))[:2])
    arrays = numpy_helper.to_array(first).copy(), numpy_helper.to_array(second).copy()
    if np.array_equal(*arrays):
        raise NoSite
    labels = constant_label(draft, first), constant_label(draft, second)
    write(first, arrays[1]), write(second, arrays[0])
    return ', '.join(labels), 'values exchanged'


def ulp(draft: Draft) -> tuple[str, str]:
    """Move one value of a float constant by 1, 2, 4, 8 or 64 units in the last place."""
    tensor = _tensor(draft, floats_only=True)
    array = numpy_helper.to_array(tensor).copy()
    bits = array.reshape(-1).view(f'i{array.itemsize}')
    places = np.flatnonzero(np.isfinite(array) & (array != 0))
    place, steps = draft.pick(places), draft.pick((1, 2, 4, 8, 64))
    bits[place] += bits.dtype.type(steps)
    where = constant_label(draft, tensor)
    write(tensor, bits.view(array.dtype))
    return where, f'[{place}] by {steps} ulp'
