"""From "unsupported operator" to a running file: every form of an operator, on both exporters."""

import functools
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting import operator_nodes as forms
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.upstream.operators.attention import attend
from mmdeploy_ext.upstream.operators.nms import BATCHED_NMS
from mmdeploy_ext.upstream.operators.operator import (
    DOMAIN,
    OPERATORS,
    Operator,
    Plugin,
    operators_as,
    register,
)
from mmdeploy_ext.upstream.operators.rotated_nms import rotated_keep
from toy_graphs import run_file, session_of

EXPORTERS = ('torchscript', pytest.param('dynamo', marks=pytest.mark.matrix))
"""The dynamo exporter takes seconds for a network of hundreds of nodes."""


class RotatedDetector(nn.Module):
    """Boxes by descending score, suppressed: an operator with a body that calls another operator."""

    inputs: ClassVar = dict(boxes={0: 'N'})
    outputs = ('keep',)

    def forward(self, boxes):
        return rotated_keep(boxes[None], torch.ones_like(boxes[None, :, 0], dtype=torch.bool), 0.3)[0]

    @staticmethod
    def feeds(seed):
        rng, count = np.random.default_rng(seed), 30 + seed
        sides = [
            rng.uniform(0, 12, (count, 2)),
            rng.uniform(0.5, 5, (count, 2)),
            rng.uniform(-4, 4, (count, 1)),
        ]
        return (np.concatenate(sides, 1).astype(np.float32),)


class Attention(nn.Module):
    """Deformable attention, a traceable form; sizes of the maps are an input."""

    inputs: ClassVar = dict(
        value={0: 'B', 1: 'S'},
        locations={0: 'B', 1: 'Q'},
        weights={0: 'B', 1: 'Q'},
        spatial_shapes={},
    )
    outputs = ('attended',)

    def forward(self, value, locations, weights, spatial_shapes):
        areas = spatial_shapes[:, 0] * spatial_shapes[:, 1]
        return attend(value, spatial_shapes, areas.cumsum(0) - areas, locations, weights)

    @staticmethod
    def feeds(seed):
        rng = np.random.default_rng(seed)
        batch, queries, heads, points = 2 + seed % 2, 5 + seed, 4, 3
        sizes = np.array([[4 + seed, 6], [2, 3 + seed]], np.int64)
        value = rng.standard_normal((batch, sizes.prod(1).sum(), heads, 4), np.float32)
        locations = rng.random((batch, queries, heads, 2, points, 2), np.float32)
        return value, locations, rng.random((batch, queries, heads, 2, points), np.float32), sizes


def export(net, exporter, form):
    with operators_as(form):
        return export_module(
            net,
            [torch.from_numpy(array) for array in net.feeds(0)],
            exporter=exporter,
            opset=18,
            input_names=tuple(net.inputs),
            output_names=net.outputs,
            dynamic={name: axes for name, axes in net.inputs.items() if axes},
        )


def domains(model):
    return {node.domain for node in model.graph.node}


@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('net', [RotatedDetector(), Attention()])
def test_standard_operators_and_functions_do_what_pytorch_does_on_other_inputs(net, exporter):
    standard, functions = (export(net, exporter, form) for form in ('standard', 'function'))
    assert domains(standard) <= {''} and not standard.functions
    assert {function.domain for function in functions.functions} == {DOMAIN}
    for model in (standard, functions):
        onnx.checker.check_model(model)
        session = session_of(model)
        for seed in (1, 2):
            feeds = net.feeds(seed)
            (found,) = session.run(None, dict(zip(net.inputs, feeds, strict=True)))
            wanted = net(*map(torch.from_numpy, feeds)).numpy()
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


class Suppression(nn.Module):
    def forward(self, *tensors):
        return BATCHED_NMS(*tensors)


@pytest.mark.parametrize(('form', 'version'), [('standard', 6), ('function', 8)])
def test_an_operator_raises_the_ir_version_only_where_it_stays_a_function(form, version):
    with operators_as(form):
        model = export_module(Suppression(), BATCHED_NMS.example(), opset=11)
    assert model.ir_version == version


def test_the_plugin_of_tensorrt_gets_the_node_it_reads():
    """Inputs and output as NVIDIA/TensorRT's multiscaleDeformableAttnPlugin states them."""
    model = export(Attention(), 'torchscript', 'plugin')
    (node,) = [node for node in model.graph.node if node.domain == 'trt.plugins']
    assert node.op_type == 'MultiscaleDeformableAttnPlugin_TRT'
    assert forms.node_attributes(node) == dict(plugin_version=b'1', plugin_namespace=b'')
    assert len(node.input) == 5 and len(node.output) == 1 and all(node.input)
    casts = {out: node for node in model.graph.node for out in node.output}
    for name in node.input[1:3]:
        assert forms.node_attributes(casts[name])['to'] == onnx.TensorProto.INT32
    assert domains(export(RotatedDetector(), 'torchscript', 'plugin')) == {''}, 'no plugin'


# ---- the smallest operator of one's own, as docs/reference/custom-operators.md has it


def soft_limit(x: torch.Tensor, limit: float, steps: int, mirrored: bool = True) -> torch.Tensor:
    for _ in range(steps):
        x = limit * torch.tanh(x / limit)
    return -x if mirrored else x


@functools.cache
def soft_limit_operator():
    """Register the operator once: PyTorch takes a name only once."""
    return register(
        Operator(
            'SoftLimit',
            soft_limit,
            inputs=dict(x='N 4'),
            outputs=('y',),
            example=lambda: (torch.rand(3, 4),),
            traceable=soft_limit,
            plugin=Plugin('SoftLimit', '2', 'mine', dict(limit='max_value'), dict(type_id=1)),
        )
    )


@pytest.fixture
def own():
    operator = soft_limit_operator()
    OPERATORS[operator.name] = operator
    yield operator
    del OPERATORS[operator.name]


class Limits(torch.nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        return self.operator(self.operator(x, 2.0, 1), 0.5, 2) + self.operator(-x, 2.0, 1)


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_attributes_and_defaults_and_axes_reach_each_form(own, exporter):
    def export(form):
        with operators_as(form):
            return export_module(
                Limits(own).eval(),
                (torch.rand(3, 4),),
                exporter=exporter,
                opset=18,
                input_names=('x',),
                output_names=('y',),
                dynamic=dict(x={0: 'N'}),
            )

    x = np.linspace(-9, 9, 20, dtype=np.float32).reshape(5, 4)
    wanted = Limits(own)(torch.from_numpy(x)).numpy()
    models = {form: export(form) for form in ('standard', 'function', 'plugin')}
    for form, model in models.items():
        assert types.text(model.graph.output[0].type) == 'float[N,4]'
        if form != 'plugin':
            np.testing.assert_allclose(run_file(model, (x,), ('x',))[0], wanted, atol=1e-6)
    assert sorted(function.name for function in models['function'].functions) == ['SoftLimit', 'SoftLimit2']
    nodes = [
        forms.node_attributes(node) for node in models['plugin'].graph.node if node.op_type == 'SoftLimit'
    ]
    assert [node['max_value'] for node in nodes] == [2.0, 0.5, 2.0]
    assert nodes[0] == dict(max_value=2.0, type_id=1, plugin_version=b'2', plugin_namespace=b'mine')


# ---- mistakes


def test_a_node_of_no_registered_operator_is_named():
    node = onnx.helper.make_node('Nothing', ['x'], ['y'], name='n1', domain=DOMAIN)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'g', [], []))
    with pytest.raises(ExportError, match=r"'n1'.*mm2onnx\.Nothing"):
        forms.finish(model, 'torchscript', 18, export_module)
