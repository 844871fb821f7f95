"""Faults planted into exported toy files: what people meet when an ONNX model is not the PyTorch model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

NODES = dict(
    weight='network/backbone/layer2/layer2.0/conv2/Conv',
    axis='decode/decode/Transpose_5',
    frozen='network/backbone/conv1/Conv',
    epsilon='network/bbox_head/cls_convs.0/gn_2/InstanceNormalization',
    kernel='network/neck/fpn_convs.1/conv/Conv',
    resize='network/neck/Resize',
    operator='network/bbox_head/cls_convs.0/activate/Relu',
)
"""Fault -> the node of the ATSS toy's `decode` file that has it."""


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return the node of a name."""
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def give(model: onnx.ModelProto, node: onnx.NodeProto, place: int, array: np.ndarray) -> None:
    """Let one input of one node read a constant of its own."""
    name = f'planted_{place}'
    model.graph.initializer.append(numpy_helper.from_array(np.array(array, order='C'), name))
    node.input[place] = name


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return an initializer."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Change an attribute of a node."""
    kept = [entry for entry in node.attribute if entry.name != name]
    node.ClearField('attribute')
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def plant(
    model: onnx.ModelProto, fault: str, example: np.ndarray | None = None
) -> tuple[onnx.ModelProto, str]:
    """Return a faulty copy of a right `decode` or `raw` export, and the name of the guilty node."""
    model, name = copy_of(model), NODES[fault]
    spoil(model, node_of(model, name), fault, example)
    return model, name


def spoil(model: onnx.ModelProto, node: onnx.NodeProto, fault: str, example: np.ndarray | None) -> None:
    """Change a node of a model so that it has a fault."""
    if fault == 'weight':
        array = constant(model, node.input[1]).copy()
        array.flat[array.size // 2] += 3 * array.std()
        give(model, node, 1, array)
    elif fault == 'axis':
        set_attribute(node, 'perm', [0, 3, 2, 1] if len(node.attribute[0].ints) == 4 else [0, 1, 2])
    elif fault == 'frozen':
        give(model, node, 0, example)
    elif fault == 'epsilon':
        set_attribute(node, 'epsilon', 1e-3)
    elif fault == 'kernel':
        give(model, node, 1, constant(model, node.input[1]).swapaxes(-1, -2))
    elif fault == 'resize':
        set_attribute(node, 'nearest_mode', 'ceil')
    else:
        node.op_type = 'LeakyRelu'
