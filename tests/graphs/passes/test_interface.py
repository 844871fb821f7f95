"""The contract pass: a graph gets exactly the spec's inputs and outputs; unknown tensors are refused."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.passes.rename import apply_spec
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

IMAGE = TensorSpec('input', 'float32', ('B', 2), 'the picture')
SCALE = TensorSpec('scale', 'float32', ('B', 2), default=3.0)
UNUSED = TensorSpec('spare', 'int64', (1, 'N'), unused=True)
OUTPUTS = (TensorSpec('twice', 'float32', ('B', 2)), TensorSpec('scaled', 'float32', ('B', 2)))


def make_model(inputs=('input', 'scale'), **constants):
    """Return twice = input + input, scaled = input * scale, with anonymous shapes and swapped outputs."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['a', 'b']) for name in inputs]
    nodes = [
        helper.make_node('Mul', ['input', 'scale'], ['scaled']),
        helper.make_node('Add', ['input', 'input'], ['twice']),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ('scaled', 'twice')]
    initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'g', infos, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=3)


def session(model):
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def axes(value):
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_inputs_and_outputs_are_the_specs_in_order_with_dtypes_letters_and_meaning():
    spec = GraphSpec('g', (SCALE, UNUSED, IMAGE), OUTPUTS)
    graph = apply_spec(make_model(), spec).graph
    assert [value.name for value in graph.input] == ['scale', 'spare', 'input']
    assert [value.name for value in graph.output] == ['twice', 'scaled']
    assert [axes(value) for value in graph.input] == [('B', 2), (1, 'N'), ('B', 2)]
    assert graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
    assert graph.input[2].doc_string == 'the picture'


def test_defaults_really_override_in_onnx_runtime_also_with_another_batch():
    running = session(apply_spec(make_model(), GraphSpec('g', (IMAGE, SCALE), OUTPUTS)))
    assert [value.name for value in running.get_inputs()] == ['input']
    assert [value.name for value in running.get_overridable_initializers()] == ['scale']
    x = np.float32([[1, 2], [3, 4]])
    np.testing.assert_array_equal(running.run(['scaled'], {'input': x})[0], 3 * x)
    own = np.float32([[5, 6], [7, 8]])
    np.testing.assert_array_equal(running.run(['scaled'], {'input': x, 'scale': own})[0], x * own)
