"""A chain of 200 nodes with skips, in which one fault can be planted."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8


def chain(length=200, overflow=None, changed=None):
    """Return a model: rotations, LeakyRelu and Max of earlier values, which neither grow nor fade."""
    rng, nodes, constants, last = np.random.default_rng(0), [], [], 'x'
    for place in range(length):
        name = 'y' if place == length - 1 else f't{place}'
        weight = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
        if place == overflow:
            constants.append(numpy_helper.from_array(np.float32(3000), 'large'))
            nodes += overflowing(last, name)
        elif place % 4 == 1:
            nodes.append(helper.make_node('LeakyRelu', [last], [name], f'act{place}', alpha=0.9))
        elif place % 4 == 3 and place > 6:
            nodes.append(helper.make_node('Max', [last, f't{place - 6}'], [name], f'max{place}'))
        else:
            if place == changed:
                weight[3, 4] += 0.5
            constants.append(numpy_helper.from_array(weight, f'w{place}'))
            nodes.append(helper.make_node('MatMul', [last, f'w{place}'], [name], f'mm{place}'))
        last = name
    ends = [[helper.make_tensor_value_info(name, 1, ['N', WIDTH])] for name in 'xy']
    graph = helper.make_graph(nodes, 'chain', *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def overflowing(last, name):
    """Return nodes that square a large number in float16."""
    return [
        helper.make_node('Mul', [last, 'large'], ['scaled'], 'scale'),
        helper.make_node('Cast', ['scaled'], ['half'], 'to_half', to=TensorProto.FLOAT16),
        helper.make_node('Mul', ['half', 'half'], ['squared'], 'square'),
        helper.make_node('Cast', ['squared'], ['single'], 'to_single', to=TensorProto.FLOAT),
        helper.make_node('Mul', ['single', last], [name], 'back'),
    ]
