"""What Autoware's nodes, and TensorRT in them, demand of an ONNX file: that it loads, tensors, operators.

The files come from anybody: damaged ones, and ones made to hang a reader, end in a violation. Needs onnx.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_tensorrt_common and the nodes (behaviour, in
own words). Tensor addresses are set without a check of types: a wrong type is read as other numbers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.consumers.graph_tensors import GraphTensors, Shape, shape_text, weight_rules
from mmdeploy_ext.core.errors import ModelFileError, one_line
from mmdeploy_ext.core.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

OLDEST_OPSET, NEWEST_OPSET = 9, 24
"""Opsets outside of which no TensorRT parser is expected to read a file. The bounds were not looked up for
the version that the nodes use, and are wide: a file within them may be refused there."""
DOMAIN = 'autoware'
"""Domain of the plug-ins of `operator_rules`, autoware_tensorrt_plugins; other nodes' may have another."""


def read_graph(path: Path) -> tuple[onnx.ModelProto | None, list[Violation]]:
    """Return the model of the file at `path`, and the violations of rules that hold for every node.

    Such are a file, an opset or a graph that no engine could load, and weights that are NaN. The model is
    None if the file cannot be read as one, which is a violation. The weights are in the model unless a
    violation says that they cannot be read.
    """
    from mmdeploy_ext.graph.io.files import load, read

    model = None
    try:
        model = read(path)
        model = load(path)
    except ModelFileError as error:
        message = ' '.join(str(error).replace(str(path), path.name).split())
        return model, [Violation(path.name, '', 'onnx', message)]
    return model, list(_model_rules(path.name, model))


def _model_rules(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from onnx import checker, shape_inference

    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_nodes

    opsets = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if len(opsets) != 1 or not OLDEST_OPSET <= opsets[0] <= NEWEST_OPSET:
        got = 'states no opset' if not opsets else f'is of opset {" and ".join(map(str, opsets))}'
        message = f'{file} {got}; expected one of {OLDEST_OPSET} to {NEWEST_OPSET}'
        yield Violation(file, '', 'opset', message)
        return
    try:
        checker.check_model(model)
        # ONNX Runtime, which loads the others, has no operators of plug-ins
        if any(node.domain not in DEFAULT_DOMAINS for node in all_nodes(model)):
            shape_inference.infer_shapes(model, strict_mode=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError, UnicodeDecodeError) as error:
        yield Violation(file, '', 'onnx', f'{file}: onnx.checker: {one_line(error)[:300]}')
        return
    yield from weight_rules(file, model)


@dataclasses.dataclass(frozen=True)
class Bound:
    """One tensor that a node reads or writes.

    Attributes:
        name: name by which the node looks it up, or the customary one if the node binds by index.
        shape: sizes that the node expects; None for a size that it does not state.
        types: element types in ONNX's words that the node reads or writes.
        type_note: added to the message of a wrong type.
        open_axes: axes of an input for which the node gives TensorRT a range of sizes.
    """

    name: str
    shape: Shape
    types: tuple[str, ...] = ('FLOAT',)
    type_note: str = ''
    open_axes: tuple[int, ...] = ()


def bind_by_index(
    file: str, tensors: GraphTensors, bounds: Sequence[Bound], input_count: int
) -> Iterator[Violation]:
    """Yield the violations for a node that counts tensors; names are free, but not in another order.

    Args:
        file: name of the file, and `node` of each violation.
        tensors: inputs and outputs of the file, which the node numbers from 0, inputs first.
        bounds: what the node takes, in its order.
        input_count: number of the bounds that are inputs; they are the first ones.
    """
    names = [*tensors.inputs, *tensors.outputs]
    if (len(tensors.inputs), len(names)) != (input_count, len(bounds)):
        message = (
            f'{file} has {len(tensors.inputs)} inputs and {len(tensors.outputs)} outputs, expected '
            f'{input_count} and {len(bounds) - input_count}; the node takes '
            f'{", ".join(bound.name for bound in bounds)} by index'
        )
        yield Violation(file, '', 'count', message)
        return
    customary = [bound.name for bound in bounds]
    for index, (name, bound) in enumerate(zip(names, bounds, strict=True)):
        if name in customary and customary.index(name) != index:
            message = (
                f'{file}: {name} is tensor {index}, where the node takes {bound.name}; it binds by index'
            )
            yield Violation(file, name, 'order', message)
        yield from _tensor_rules(file, name, tensors, bound)


def bind_by_name(
    file: str,
    tensors: GraphTensors,
    inputs: Sequence[Bound],
    outputs: Sequence[Bound],
    *,
    exact: bool,
    consequence: str,
) -> Iterator[Violation]:
    """Yield the violations for a node that looks tensors up by name.

    Args:
        file: name of the file.
        tensors: inputs and outputs of the file; other inputs than the node's are refused.
        inputs: inputs that the node feeds.
        outputs: outputs that the node reads.
        exact: whether the node compares all tensors and their axes with its own: other outputs are refused,
            too, and inputs whose fixed and open axes are not those that it states.
        consequence: what becomes of a name that is missing, for the message.
    """
    unfed, unknown = 'that the node feeds nothing: it is never written', 'that the node does not know'
    for side, bounds, names, extra in (
        ('input', inputs, tensors.inputs, unfed),
        ('output', outputs, tensors.outputs, unknown if exact else ''),
    ):
        for bound in bounds:
            if bound.name in names:
                yield from _tensor_rules(file, bound.name, tensors, bound)
                if exact and side == 'input':
                    yield from _axis_rules(file, tensors.inputs[bound.name], bound)
            else:
                message = f'{file} has no {side} {bound.name!r}, {consequence}; there are '
                yield Violation(file, bound.name, 'name', message + (', '.join(names) or 'none'))
        for name in names:
            if extra and name not in {bound.name for bound in bounds}:
                yield Violation(file, name, 'extra', f'{file} has an {side} {name!r} {extra}')


def _tensor_rules(file: str, name: str, tensors: GraphTensors, bound: Bound) -> Iterator[Violation]:
    """Yield a type or size for which a node has no memory; an axis that is not fixed may be any."""
    shape, elem_type = tensors.shapes[name], tensors.types[name]
    if elem_type not in bound.types:
        message = f'{file}: {name} is {elem_type}, expected {" or ".join(bound.types)}; the node does not '
        message += f'check it: {bound.type_note}' if bound.type_note else 'check it'
        yield Violation(file, name, 'type', message)
    fits = len(shape) == len(bound.shape) and all(
        size is None or expected is None or size == expected
        for size, expected in zip(shape, bound.shape, strict=True)
    )
    if not fits:
        message = f'{file}: {name} is {shape_text(shape)}, expected {shape_text(bound.shape)}'
        yield Violation(file, name, 'shape', message)


def _axis_rules(file: str, shape: Shape, bound: Bound) -> Iterator[Violation]:
    """Yield axes that are fixed where a node gives a range of sizes, and open where it states one size.

    Of outputs TensorRT finds the axes itself, whatever the file states.
    """
    for axis, (size, expected) in enumerate(zip(shape, bound.shape, strict=False)):
        message = ''
        if axis in bound.open_axes and size is not None:
            message = 'is fixed, and the node gives a range of sizes: export it with an axis that is open'
        elif axis not in bound.open_axes and size is None and expected is not None:
            message = f'is open, and the node states {expected}: export it with that size'
        if message:
            message = f'{file}: axis {axis} of {bound.name} ({shape_text(shape)}) {message}'
            yield Violation(file, bound.name, 'dynamic', message)


def fixed_rules(file: str, tensors: GraphTensors) -> Iterator[Violation]:
    """Yield a violation for each input and output with an axis that is not fixed, for nodes without profiles.

    `file` is the name of the file, and `node` of each violation; `tensors` are its inputs and outputs.
    """
    for name, shape in tensors.shapes.items():
        if None in shape:
            message = f'{file}: {name} is {shape_text(shape)}; the node gives no sizes: export it static'
            yield Violation(file, name, 'dynamic', message)


def operator_rules(
    file: str, model: onnx.ModelProto, plugins: Mapping[str, Sequence[str]]
) -> Iterator[Violation]:
    """Yield a violation for each operator beside ONNX's own that is no plug-in, or lacks an attribute of one.

    Operators are looked for in the bodies of nodes, too. Initializers in float16 are one warning: the nodes
    make that precision themselves.

    Args:
        file: name of the file, and `node` of each violation.
        model: its model.
        plugins: operator of `DOMAIN` that the node loads -> attributes that its plug-in counts on.
    """
    from onnx import TensorProto

    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_nodes

    for node in all_nodes(model):
        if node.domain in DEFAULT_DOMAINS:
            continue
        operator, title = f'{node.domain}::{node.op_type}', f'{file}: {node.name or node.op_type}'
        if node.domain != DOMAIN or node.op_type not in plugins:
            message = (
                f'{title} is {operator}; the plug-ins that the node loads: {", ".join(plugins) or "none"}'
            )
            yield Violation(file, node.name, 'operator', message)
            continue
        attributes = {entry.name for entry in node.attribute}
        for name in plugins[node.op_type]:
            if name not in attributes:
                message = f'{title} has no attribute {name}; the plug-in {operator} is not made without it'
                yield Violation(file, node.name, 'attribute', message)
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        message = f'{file} holds float16 weights; the nodes build fp16 from float32 files by trt_precision'
        yield Violation(file, '', 'precision', message, WARNING)
