"""Faults planted into exported toy files: what people meet when an ONNX model is not the PyTorch model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

FAULTS = ('weight', 'axis', 'frozen', 'epsilon', 'kernel', 'resize', 'operator')
NODES = {
    'atss': dict(
        weight='network/backbone/layer2/layer2.0/conv2/Conv',
        axis='decode/decode/Transpose_5',
        frozen='network/backbone/conv1/Conv',
        epsilon='network/bbox_head/cls_convs.0/gn_2/InstanceNormalization',
        kernel='network/neck/fpn_convs.1/conv/Conv',
        resize='network/neck/Resize',
        operator='network/bbox_head/cls_convs.0/activate/Relu',
    ),
    'solov2': dict(
        weight='network/levels/backbone/layer2/layer2.0/conv2/Conv',
        axis='network/Transpose',
        frozen='network/levels/backbone/conv1/Conv',
        epsilon='network/levels/kernel_convs.0/gn_1/InstanceNormalization',
        kernel='network/levels/cls_convs.0/conv_1/Conv',
        resize='network/levels/convs_all_levels.2/upsample0/Resize',
        operator='network/levels/backbone/layer2/layer2.0/relu/Relu',
    ),
    # no convolution and no Resize in this graph: the kernel is a square matrix, and instead of a pixel next
    # to the right one the tokens of the decoder layer next to the right one are taken
    'streampetr': dict(
        weight='/transformer/decoder/layers.0/attentions.1/attn/MatMul_2',
        axis='/Transpose',
        frozen='/Slice_5',
        epsilon='/transformer/decoder/layers.1/norms.1/LayerNormalization',
        kernel='/reg_branches.0/reg_branches.0.0/MatMul',
        resize='/Gather_3',
        operator='/transformer/decoder/layers.1/ffns.0/layers/layers.0/activate/Relu',
    ),
}


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
    model: onnx.ModelProto, family: str, fault: str, example: np.ndarray
) -> tuple[onnx.ModelProto, str]:
    """Return a faulty copy of a model, and the name of the guilty node.

    Args:
        model: a right export.
        family: key of `NODES`.
        fault: one of `FAULTS`.
        example: what the frozen input was when the model was traced.
    """
    model, name = copy_of(model), NODES[family][fault]
    node = node_of(model, name)
    PLANTERS[fault](model, node, family, example)
    return model, name


def _weight(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    array = constant(model, node.input[1]).copy()
    array.flat[array.size // 2] += 3 * array.std()
    give(model, node, 1, array)


def _axis(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    perm = list(node.attribute[0].ints)
    set_attribute(node, 'perm', [0, 3, 2, 1] if len(perm) == 4 else [0, 1, 2])


def _frozen(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    give(model, node, 0, example)


def _epsilon(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    set_attribute(node, 'epsilon', 1e-3)


def _kernel(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    give(model, node, 1, constant(model, node.input[1]).swapaxes(-1, -2))


def _resize(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    if node.op_type == 'Gather':
        give(model, node, 1, np.asarray(0, np.int64))
    elif family == 'atss':
        set_attribute(node, 'nearest_mode', 'ceil')
    else:
        set_attribute(node, 'coordinate_transformation_mode', 'align_corners')


def _operator(model: onnx.ModelProto, node: onnx.NodeProto, family: str, example: np.ndarray) -> None:
    node.op_type = 'LeakyRelu'


PLANTERS = dict(
    weight=_weight,
    axis=_axis,
    frozen=_frozen,
    epsilon=_epsilon,
    kernel=_kernel,
    resize=_resize,
    operator=_operator,
)
