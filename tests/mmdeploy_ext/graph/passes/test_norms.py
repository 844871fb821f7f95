"""Group normalisation is written as LayerNormalization: the same numbers, also where a map is constant."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graph.io.index import all_nodes
from mmdeploy_ext.graph.passes.named_rules import replace_all
from mmdeploy_ext.graph.passes.norms import replace_instance_norm
from mmdeploy_ext.graph.run import Runner


def make(scale=1.0, bias=0.0, opset=17, rank=3, fed=False, constant=False):
    """y = InstanceNormalization(x (N, 4, ...)); its scale may be fed, or be of a Constant node."""
    parameters = {'scale': np.full(4, scale, np.float32), 'bias': np.full(4, bias, np.float32)}
    tensors = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    nodes = [helper.make_node('InstanceNormalization', ['x', 'scale', 'bias'], ['y'], 'norm', epsilon=1e-3)]
    if constant:
        nodes = [*(helper.make_node('Constant', [], [t.name], value=t) for t in tensors), *nodes]
    shape = ['n', 4, *'abc'[: rank - 2]]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in 'xy']
    if fed:
        ends[0].append(helper.make_tensor_value_info('scale', TensorProto.FLOAT, [4]))
    graph = helper.make_graph(nodes, 'g', *ends, [] if constant else tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)


@pytest.mark.parametrize('rank', [3, 4, 5])
@pytest.mark.parametrize('constant', [False, True])
def test_the_numbers_stay_at_any_rank(rank, constant):
    model = make(rank=rank, constant=constant)
    result, changed = replace_instance_norm(model)
    onnx.checker.check_model(result, full_check=True)
    assert changed
    assert [node.op_type for node in model.graph.node][-1] == 'InstanceNormalization', 'the argument changed'
    (node,) = (node for node in result.graph.node if node.op_type != 'Constant')
    assert (node.op_type, node.name) == ('LayerNormalization', 'norm')
    x = np.random.default_rng(0).normal(3, 2, (2, 4, *(3, 5, 7)[: rank - 2])).astype(np.float32)
    axes = tuple(range(2, rank))
    wanted = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(Runner(result).run(dict(x=x))['y'], wanted, atol=1e-5)


@pytest.mark.parametrize('other', [dict(scale=2.0), dict(bias=0.5), dict(opset=16), dict(fed=True)])
def test_others_stay(other):
    model = make(**other)
    assert replace_instance_norm(model) == (model, False)


@pytest.mark.parametrize(('exporter', 'opset'), [('torchscript', 17), ('dynamo', 18)])
def test_a_map_with_a_constant_half_is_normalised_as_by_pytorch(exporter, opset):
    """Sums of one number in float32, one after the other, are off by 1e-5 and more (`passes/norms.py`)."""
    norm = torch.nn.GroupNorm(2, 8)
    image = torch.randn(1, 8, 96, 160, generator=torch.Generator().manual_seed(0))
    image[..., 80:] = 1.234
    model = export_module(
        norm, (image,), input_names=['x'], output_names=['y'], opset=opset, exporter=exporter
    )
    model, changed = replace_instance_norm(model)
    assert changed
    assert 'InstanceNormalization' not in {node.op_type for node in all_nodes(model)}
    exact = torch.nn.functional.group_norm(image.double(), 2).numpy()
    got = Runner(model).run(dict(x=image.numpy()))['y']
    assert np.abs(got - exact).max() <= 1e-6 * np.abs(exact).max()


def test_by_name_it_is_counted_and_what_stays_is_named():
    model, (report,) = replace_all(make(), [], ['group-norm'])
    assert report.count == 1 and not report.kept and model.graph.node[0].op_type == 'LayerNormalization'
    model, (report,) = replace_all(make(bias=0.5), [], ['group-norm'])
    assert report.count == 0 and "InstanceNormalization 'norm' is kept" in report.kept[0]
