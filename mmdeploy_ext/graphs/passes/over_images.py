"""Run a graph of one image in a Loop over the images of a batch."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.io.index import refill
from mmdeploy_ext.graphs.passes.rename import rename_tensors

IMAGE = 'image'
"""Prefix, before '/', of the tensors of one image."""


def over_images(
    model: onnx.ModelProto, shared: Collection[str] = (), repeated: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a model whose inputs and outputs have an axis of images of any size in place of one of size 1.

    Args:
        model: with the axis first; its outputs have a constant number of rows. It is changed.
        shared: inputs without the axis.
        repeated: inputs that may have one entry for all images; the first other input counts the images.
    """
    graph = model.graph
    inputs, outputs = list(graph.input), list(graph.output)
    counted = next(one.name for one in inputs if one.name not in (*shared, *repeated))
    rename_tensors(graph, lambda name: name if name in shared else f'{IMAGE}/{name}')
    nodes = [helper.make_node('Reshape', ['image', 'one'], ['row'])]
    for value in inputs:
        name = value.name.removeprefix(f'{IMAGE}/')
        value.name = name
        if name in shared:
            continue
        row = 'row'
        if name in repeated:
            row = f'{name}/row'
            nodes += [
                helper.make_node('Shape', [name], [f'{name}/shape']),
                helper.make_node('Gather', [f'{name}/shape', 'first'], [f'{name}/images']),
                helper.make_node('Mod', ['row', f'{name}/images'], [row]),
            ]
        nodes.append(helper.make_node('Gather', [name, row], [f'{IMAGE}/{name}'], axis=0))
    nodes += graph.node
    rows = [helper.make_tensor_value_info('go', TensorProto.BOOL, [])]
    nodes.append(helper.make_node('Identity', ['going'], ['go']))
    for value in outputs:
        nodes.append(helper.make_node('Gather', [value.name, 'zero'], [f'{value.name}/row'], axis=0))
        row = onnx.ValueInfoProto()
        row.CopyFrom(value)
        row.name = f'{value.name}/row'
        del row.type.tensor_type.shape.dim[0]
        rows.append(row)
        value.name = value.name.removeprefix(f'{IMAGE}/')
        value.type.tensor_type.shape.dim[0].ClearField('dim_value')
    for node in nodes:
        node.name = node.name or f'{node.op_type}_{node.output[0]}'
    begin = [
        helper.make_tensor_value_info('image', TensorProto.INT64, []),
        helper.make_tensor_value_info('going', TensorProto.BOOL, []),
    ]
    body = helper.make_graph(nodes, 'one_image', begin, rows)
    constants = dict(one=[1], first=[0], zero=0, yes=True)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items()
    )
    counting = [
        helper.make_node('Shape', [counted], ['images_shape'], name='images_shape'),
        helper.make_node('Gather', ['images_shape', 'zero'], ['images'], name='images'),
        helper.make_node(
            'Loop', ['images', 'yes'], [value.name for value in outputs], name='images_loop', body=body
        ),
    ]
    graph.ClearField('value_info')
    refill(graph, input=inputs, output=outputs, node=counting)
    return model
