"""From "unsupported operator" to a running file: every form of an operator, on both exporters."""

import functools

import numpy as np
import onnx
import pytest
import torch

import toy_operators as toys
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.ops import forms
from mmdeploy_ext.exporting.ops.operator import DOMAIN, OPERATORS, Operator, Plugin, operators_as, register
from mmdeploy_ext.graph.io import types

EXPORTERS = ('torchscript', pytest.param('dynamo', marks=pytest.mark.matrix))
"""The dynamo exporter takes seconds for a network of hundreds of nodes."""


@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('net', toys.NETS)
def test_standard_operators_and_functions_do_what_pytorch_does_on_other_inputs(net, exporter):
    net = toys.build(net)
    standard, functions = (toys.export(net, exporter, form) for form in ('standard', 'function'))
    assert toys.domains(standard) <= {''} and not standard.functions
    assert {function.domain for function in functions.functions} == {DOMAIN}
    for model in (standard, functions):
        onnx.checker.check_model(model)
        for seed in (1, 2):
            feeds = net.feeds(seed)
            toys.assert_same(net, toys.run(model, feeds, net.inputs), feeds)


def test_the_plugin_of_tensorrt_gets_the_node_it_reads():
    """Inputs and output as NVIDIA/TensorRT's multiscaleDeformableAttnPlugin states them."""
    model = toys.export(toys.build(toys.Attention), 'torchscript', 'plugin')
    (node,) = [node for node in model.graph.node if node.domain == 'trt.plugins']
    assert node.op_type == 'MultiscaleDeformableAttnPlugin_TRT'
    assert forms.node_attributes(node) == dict(plugin_version=b'1', plugin_namespace=b'')
    assert len(node.input) == 5 and len(node.output) == 1 and all(node.input)
    casts = {out: node for node in model.graph.node for out in node.output}
    for name in node.input[1:3]:
        assert forms.node_attributes(casts[name])['to'] == onnx.TensorProto.INT32
    without = toys.export(toys.build(toys.RotatedDetector), 'torchscript', 'plugin')
    assert toys.domains(without) == {''}, 'no plugin'


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
            np.testing.assert_allclose(toys.run(model, (x,), ('x',))[0], wanted, atol=1e-6)
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
