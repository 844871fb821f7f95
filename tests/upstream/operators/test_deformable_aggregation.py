"""Deformable aggregation: the kernel's rule at the border, in PyTorch and in graphs.

Golden cases: tests/goldens/sparse4d/dfa_op.npz, upstream's kernel compiled and run.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from dev.seeded.by_name import name_rng
from mmdeploy_ext.exporting import operator_nodes as forms
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.upstream.operators.deformable_aggregation import DEFORMABLE_AGGREGATION, aggregate
from mmdeploy_ext.upstream.operators.operator import operators_as
from upstream_goldens import IN_REPOSITORY

CASES = 'abc'
KERNEL, ROUNDING = 5e-6, 1e-12
NAMES = tuple(DEFORMABLE_AGGREGATION.inputs)


def golden_case(name):
    """Return the arguments of `aggregate`, and the stored arrays, of a case."""
    with np.load(IN_REPOSITORY / 'sparse4d/dfa_op.npz') as file:
        stored = {key[2:]: file[key] for key in file.files if key.startswith(f'{name}_')}
    batch, instances, points, cameras, levels, channels, groups = stored['dims'].tolist()
    sizes = np.tile(stored['shapes'], (cameras, 1, 1)).astype(np.int32)
    features = name_rng(f'dfa_op_{name}_feat').standard_normal((batch, int(sizes.prod(-1).sum()), channels))
    drawn = name_rng(f'dfa_op_{name}_weights')
    logits = 2 * drawn.standard_normal((batch, instances, points, cameras, levels, groups))
    exponents = np.exp(logits - logits.max((2, 3, 4), keepdims=True))
    weights = exponents / exponents.sum((2, 3, 4), keepdims=True)
    starts = stored['scale_start_index'].astype(np.int32)
    values = features.astype(np.float32), sizes, starts, stored['loc'], weights.astype(np.float32)
    return tuple(map(torch.from_numpy, values)), stored


class Aggregation(torch.nn.Module):
    def __init__(self, sizes, starts, grid_sample):
        super().__init__()
        self.register_buffer('sizes', sizes)
        self.register_buffer('starts', starts)
        self.grid_sample = grid_sample

    def forward(self, features, locations, weights):
        return aggregate(features, self.sizes, self.starts, locations, weights, self.grid_sample)


def exported(case, grid_sample, form='standard'):
    """The graph is traced with other points, of which none is in a picture."""
    features, sizes, starts, locations, weights = case
    module = Aggregation(sizes, starts, grid_sample).eval()
    names = ['features', 'locations', 'weights']
    traced = features, locations + 9, weights
    with operators_as(form):
        return export_module(module, traced, opset=17, input_names=names, output_names=['aggregated'])


def in_onnx_runtime(model, case):
    features, _, _, locations, weights = case
    session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    feeds = dict(features=features, locations=locations, weights=weights)
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})[0]


@pytest.mark.parametrize('name', CASES)
def test_pytorch_computes_what_the_kernel_does(name):
    case, stored = golden_case(name)
    np.testing.assert_allclose(aggregate(*case), stored['out'], rtol=0, atol=KERNEL)
    exact = [values.double() if values.is_floating_point() else values for values in case]
    np.testing.assert_allclose(aggregate(*exact), stored['out_float64'], rtol=0, atol=ROUNDING)
    assert np.abs(aggregate(*case).numpy() - stored['out_grid_sample']).max() > 0.3


@pytest.mark.parametrize(('name', 'grid_sample'), [('a', False), ('b', True), ('c', False), ('c', True)])
def test_a_graph_computes_what_the_kernel_does(name, grid_sample):
    case, stored = golden_case(name)
    model = exported(case, grid_sample)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {''}
    np.testing.assert_allclose(in_onnx_runtime(model, case), stored['out'], rtol=0, atol=KERNEL)


def test_the_plugin_gets_the_node_that_its_creator_reads():
    """Name, version and inputs of SparseEnd2End's DeformableAttentionAggrPlugin, which has no attributes."""
    model = exported(golden_case('a')[0], grid_sample=False, form='plugin')
    (node,) = [node for node in model.graph.node if node.domain == 'custom']
    assert node.op_type == 'DeformableAttentionAggrPlugin'
    assert forms.node_attributes(node) == dict(plugin_version=b'1', plugin_namespace=b'')
    assert len(node.input) == len(NAMES) and len(node.output) == 1
