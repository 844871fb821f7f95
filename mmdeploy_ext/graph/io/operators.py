"""Schemas of operators by opset, and the nodes of a graph that draw random numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graph.io.constants import constant_value
from mmdeploy_ext.graph.io.index import RANDOM, all_graphs

WEIGHTS = {'Conv': 1, 'ConvInteger': 1, 'ConvTranspose': 1, 'DeformConv': 1, 'QLinearConv': 3}
"""Operator of a convolution -> place of the input whose shape (D, C, *kernel) states the kernel."""

LEFT_OUT = {'ConvTranspose': 'output_padding', 'AveragePool': 'dilations', 'LpPool': 'dilations'}
"""Operator -> attribute that its canonical form lacks at the default.

PyTorch's TorchScript exporter writes the others and leaves these out, so that the digests of its files, which
the records of the zoo hold, are those of the attributes as they stand in the file.
"""


def opsets_of(model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    """Return domain -> version of the opset that a model or function imports; ONNX's own domain is ''."""
    return {'' if entry.domain == 'ai.onnx' else entry.domain: entry.version for entry in model.opset_import}


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """Return the schema of a node's operator in these opsets (domain -> version), None when ONNX has none.

    A domain that `opsets` lacks counts as version 1.
    """
    domain = '' if node.domain == 'ai.onnx' else node.domain
    return _schema(node.op_type, domain, opsets.get(domain, 1))


@functools.cache
def _schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return name -> value in Python of the attributes of a node; texts are bytes."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def defaults_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> dict[str, Any]:
    """Return name -> default value of the attributes of a node's operator that have one, whatever it states.

    `opsets` is domain -> version, as `opsets_of` returns it. Texts are bytes. {} for an operator without a
    schema.
    """
    schema = schema_of(node, opsets)
    entries = [entry.default_value for entry in schema.attributes.values()] if schema else []
    return {entry.name: helper.get_attribute_value(entry) for entry in entries if entry.name}


def fill_window(
    values: dict[str, Any],
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    shape_of_constant: Callable[[str], Sequence[int] | None],
) -> None:
    """Bring the attributes that describe the window of a convolution or pooling into one form, in place.

    The schemas have no default for kernel, strides, dilations and pads, because its length is the rank of the
    kernel; the specification of the operators has it in words. Defaults are added, but for those of
    `LEFT_OUT`, which are removed if they are stated, and for pads where `auto_pad` or `output_shape` decides.

    Args:
        values: attributes of the node by name, with the defaults of `defaults_of`; changed in place.
        node: any node; one without a window, or whose rank nothing shows, stays as it is.
        opsets: domain -> version, as `opsets_of` returns it.
        shape_of_constant: returns the shape of a tensor that is a constant, and None for any other.
    """
    schema = schema_of(node, opsets)
    if schema is None or 'strides' not in schema.attributes:
        return
    kernel, place = values.get('kernel_shape'), WEIGHTS.get(node.op_type, len(node.input))
    if kernel is None and place < len(node.input):
        kernel = list(shape_of_constant(node.input[place]) or ())[2:]
    if not kernel:
        return
    rank = len(kernel)
    defaults = dict(kernel_shape=kernel, strides=[1] * rank, dilations=[1] * rank, output_padding=[0] * rank)
    if 'output_shape' not in values and values.get('auto_pad') == b'NOTSET':  # else they state the padding
        defaults['pads'] = [0] * (2 * rank)
    left_out = LEFT_OUT.get(node.op_type, '')
    for name in schema.attributes.keys() & defaults.keys() - {left_out}:
        values.setdefault(name, defaults[name])
    if left_out and values.get(left_out) == defaults[left_out]:
        del values[left_out]


def random_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes whose results are random, also of bodies and functions, as 'name (operator)'.

    A node without a name is '#12', its position in its graph, body or function. Their results differ between
    engines, so that no number of runs shows that two of them agree. Dropout counts where it can be in
    training mode: its third input is there and is not a constant false of the same graph (in opsets 7 to 11
    it has none, and never draws).
    """
    return [
        f'{node.name or f"#{position}"} ({node.op_type})'
        for graph in all_graphs(model)
        for position, node in enumerate(graph.node)
        if node.op_type in RANDOM or (node.op_type == 'Dropout' and _may_train(node, graph))
    ]


def _may_train(dropout: onnx.NodeProto, graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if len(dropout.input) < 3 or not dropout.input[2]:
        return False
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in getattr(graph, 'initializer', ())}
    constants.update((node.output[0], constant_value(node)) for node in graph.node if node.output)
    training = constants.get(dropout.input[2])
    inputs = {value if isinstance(value, str) else value.name for value in graph.input}
    return training is None or dropout.input[2] in inputs or bool(np.any(training))
