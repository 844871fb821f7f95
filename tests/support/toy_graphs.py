"""Small ordinary ONNX graphs."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.run import random_feeds, run


def model_of(nodes, inputs, outputs, initializers=(), opset=17, **fields) -> onnx.ModelProto:
    """Make a model; inputs and outputs are (name, shape) of floats, or values."""
    sides = [
        [
            value
            if isinstance(value, onnx.ValueInfoProto)
            else helper.make_tensor_value_info(value[0], TensorProto.FLOAT, value[1])
            for value in values
        ]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph(list(nodes), 'toy', *sides, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8, **fields)


def conv_net() -> onnx.ModelProto:
    """Return two named convolutions, pooling and a matrix product."""
    rng = np.random.default_rng(0)

    def weight(name, *sizes):
        return numpy_helper.from_array(rng.standard_normal(sizes).astype(np.float32), name)

    nodes = [
        helper.make_node(
            'Conv',
            ['images', 'stem.weight', 'stem.bias'],
            ['a'],
            name='/stem/Conv',
            pads=[1] * 4,
            strides=[2, 2],
        ),
        helper.make_node('Relu', ['a'], ['b'], name='/relu/Relu'),
        helper.make_node('Conv', ['b', 'block.weight'], ['c'], name='/layer/layer.0/conv/Conv', group=2),
        helper.make_node('GlobalAveragePool', ['c'], ['d'], name='/GlobalAveragePool'),
        helper.make_node('Flatten', ['d'], ['e'], name='/Flatten'),
        helper.make_node('Gemm', ['e', 'fc.weight', 'fc.bias'], ['scores'], name='/fc/Gemm', transB=1),
    ]
    initializers = [
        weight('stem.weight', 4, 3, 3, 3),
        weight('stem.bias', 4),
        weight('block.weight', 6, 2, 1, 1),
        weight('fc.weight', 5, 6),
        weight('fc.bias', 5),
    ]
    return model_of(nodes, [('images', [1, 3, 8, 8])], [('scores', [1, 5])], initializers)


def same(left: dict, right: dict) -> None:
    """Assert that two results are the same bit for bit."""
    assert left.keys() == right.keys() and left
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name, strict=True)


def as_in_whole(model, part):
    """Check that a part computes what a graph has there, from random inputs in the sizes of the part."""
    fixed = {
        value.name: value
        for value in part.graph.input
        if all(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    }
    sized = onnx.ModelProto.FromString(model.SerializeToString())
    for value in sized.graph.input:
        value.CopyFrom(fixed.get(value.name, value))
    feeds = random_feeds(sized)
    ends = [value.name for value in (*part.graph.input, *part.graph.output)]
    whole = run(model, feeds, ends)
    found = run(part, {value.name: whole[value.name] for value in part.graph.input})
    same(found, {name: whole[name] for name in found})


def session_of(model):
    """Return the session of a model in ONNX Runtime."""
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def run_file(model, feeds, names):
    """Run a model in ONNX Runtime on arrays in the order of the names; return its outputs in order."""
    return session_of(model).run(None, dict(zip(names, feeds, strict=True)))
