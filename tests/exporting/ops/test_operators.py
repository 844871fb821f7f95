"""From "unsupported operator" to a running file: every form of an operator, on both exporters."""

import dataclasses
import functools

import numpy as np
import onnx
import pytest
import torch

import toy_operators as toys
from marking import in_suite
from mmdeploy_ext.core.errors import EngineError, ExportError, UsageError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.ops import cells, forms, nms  # noqa: F401  (they register themselves)
from mmdeploy_ext.exporting.ops.operator import DOMAIN, OPERATORS, Operator, Plugin, operators_as, register
from mmdeploy_ext.exporting.ops.python_nodes import python_session
from mmdeploy_ext.graph.io import types

MATRIX = pytest.mark.matrix
EXPORTERS = ('torchscript', 'dynamo')
EXTENSIONS = 'optional: pip install onnxruntime-extensions -c requirements/lock.txt'
UNSEEN = range(1, 4)
SOME = [
    *(pytest.param(net, 'torchscript') for net in toys.NETS),
    *(pytest.param(net, 'dynamo', marks=[] if net is toys.SuperResolution else MATRIX) for net in toys.NETS),
]
"""The dynamo exporter takes seconds for a network of hundreds of nodes; the matrix has them all."""


@pytest.fixture(scope='module', params=toys.NETS, ids=lambda net: net.__name__)
def net(request):
    return toys.build(request.param)


@pytest.mark.parametrize('exporter', in_suite(EXPORTERS, 'torchscript'))
def test_standard_operators_do_what_pytorch_does_on_inputs_that_were_not_traced(net, exporter):
    model = toys.export(net, exporter)
    assert toys.domains(model) <= {''} and not model.functions
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for seed in UNSEEN:
        feeds = net.feeds(seed)
        toys.assert_same(net, toys.run(model, feeds, net.inputs), feeds)


@pytest.mark.parametrize(('net', 'exporter'), SOME, indirect=['net'])
def test_a_local_function_does_what_pytorch_does(net, exporter):
    model = toys.export(net, exporter, 'function')
    assert [(function.domain, len(function.node) > 1) for function in model.functions] == [(DOMAIN, True)]
    onnx.checker.check_model(model)
    for seed in UNSEEN:
        feeds = net.feeds(seed)
        toys.assert_same(net, toys.run(model, feeds, net.inputs), feeds)


@pytest.mark.parametrize(('net', 'exporter'), SOME, indirect=['net'])
def test_python_runs_inside_onnx_runtime(net, exporter):
    pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    session = python_session(toys.export(net, exporter, 'python'))
    for seed in UNSEEN:
        feeds = net.feeds(seed)
        found = session.run(None, dict(zip(net.inputs, feeds, strict=True)))
        toys.assert_same(net, found, feeds)


def test_without_the_extension_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime_extensions', None)
    with pytest.raises(Exception, match=EXTENSIONS.removeprefix('optional: ')):
        python_session(onnx.ModelProto())


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_the_plugin_of_tensorrt_gets_the_node_it_reads(exporter):
    """Inputs and output as NVIDIA/TensorRT's multiscaleDeformableAttnPlugin states them."""
    model = toys.export(toys.build(toys.Attention), exporter, 'plugin')
    (node,) = [node for node in model.graph.node if node.domain == 'trt.plugins']
    assert node.op_type == 'MultiscaleDeformableAttnPlugin_TRT'
    assert forms.node_attributes(node) == dict(plugin_version=b'1', plugin_namespace=b'')
    assert len(node.input) == 5 and len(node.output) == 1 and all(node.input)
    casts = {out: node for node in model.graph.node for out in node.output}
    for name in node.input[1:3]:
        assert forms.node_attributes(casts[name])['to'] == onnx.TensorProto.INT32
    assert {entry.domain for entry in model.opset_import} >= {'', 'trt.plugins'}


def test_operators_without_a_plugin_are_standard_there():
    model = toys.export(toys.build(toys.SuperResolution), 'torchscript', 'plugin')
    assert toys.domains(model) == {''}


# ---- the smallest operator of one's own, as docs/custom-operators.md has it


def soft_limit(x: torch.Tensor, limit: float, steps: int) -> torch.Tensor:
    for _ in range(steps):
        x = limit * torch.tanh(x / limit)
    return x


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


def export_limits(operator, form, exporter='torchscript'):
    with operators_as(form):
        return export_module(
            Limits(operator).eval(),
            (torch.rand(3, 4),),
            exporter=exporter,
            opset=18,
            input_names=('x',),
            output_names=('y',),
            dynamic=dict(x={0: 'N'}),
        )


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_attributes_reach_each_form(own, exporter):
    x = np.linspace(-9, 9, 20, dtype=np.float32).reshape(5, 4)
    wanted = Limits(own)(torch.from_numpy(x)).numpy()
    model = export_limits(own, 'function', exporter)
    assert sorted(function.name for function in model.functions) == ['SoftLimit', 'SoftLimit2']
    onnx.checker.check_model(model)
    np.testing.assert_allclose(toys.run(model, (x,), ('x',))[0], wanted, atol=1e-6)
    plugin = export_limits(own, 'plugin', exporter)
    nodes = [forms.node_attributes(node) for node in plugin.graph.node if node.op_type == 'SoftLimit']
    assert [node['max_value'] for node in nodes] == [2.0, 0.5, 2.0]
    assert nodes[0] == dict(max_value=2.0, type_id=1, plugin_version=b'2', plugin_namespace=b'mine')


@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('form', ['standard', 'function', 'python', 'plugin'])
def test_outputs_have_the_letters_and_sizes_that_the_inputs_have(own, form, exporter):
    (output,) = export_limits(own, form, exporter).graph.output
    assert types.text(output.type) == 'float[N,4]'


def test_python_nodes_get_attributes(own):
    pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    seen = []

    def reference(x, limit, steps):
        seen.append((float(limit), int(steps)))
        return soft_limit(torch.from_numpy(np.array(x)), limit, int(steps)).numpy()

    changed = dataclasses.replace(own, reference=reference)
    OPERATORS[own.name] = changed
    x = np.linspace(-9, 9, 20, dtype=np.float32).reshape(5, 4)
    found = python_session(export_limits(own, 'python')).run(None, dict(x=x))[0]
    np.testing.assert_allclose(found, Limits(own)(torch.from_numpy(x)).numpy(), atol=1e-6)
    assert sorted(set(seen)) == [(0.5, 2), (2.0, 1)]


def bucket(x: torch.Tensor, edges: torch.Tensor, right: bool, shift: int = 2) -> torch.Tensor:
    return torch.bucketize(x, edges, right=right) + shift


def strict_bucket(x: torch.Tensor, edges: torch.Tensor, right: bool, shift: int = 2) -> torch.Tensor:
    assert isinstance(right, bool)
    below = edges <= x[:, None] if right else edges < x[:, None]
    return below.sum(1) + shift


class Buckets(torch.nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x, edges):
        return self.operator(x, edges, True)


@functools.cache
def bucket_operator():
    return register(
        Operator(
            'Bucket',
            bucket,
            inputs=dict(x='N', edges='3'),
            outputs=('y',),
            example=lambda: (torch.rand(5), torch.tensor([0.2, 0.4, 0.6])),
            traceable=strict_bucket,
        )
    )


@pytest.fixture
def buckets():
    operator = bucket_operator()
    OPERATORS[operator.name] = operator
    yield operator
    del OPERATORS[operator.name]


@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('form', ['standard', 'function', 'python'])
def test_a_bool_stays_one_in_each_form_and_a_default_is_filled_in(buckets, form, exporter):
    if form == 'python':
        pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    x, edges = np.array([0.2, 0.3, 0.6, 0.7], np.float32), np.array([0.2, 0.4, 0.6], np.float32)
    args = tuple(map(torch.from_numpy, (x, edges)))
    with operators_as(form):
        model = export_module(Buckets(buckets), args, exporter=exporter, opset=18, input_names=('x', 'edges'))
    session = python_session(model) if form == 'python' else None
    feeds = dict(x=x, edges=edges)
    found = session.run(None, feeds)[0] if session else toys.run(model, (x, edges), feeds)[0]
    assert found.tolist() == bucket(*args, True).tolist() == [3, 3, 5, 5]


def test_an_operator_that_the_graph_does_not_use_cannot_break_a_python_session(own, buckets):
    pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    OPERATORS[buckets.name] = dataclasses.replace(buckets, example=lambda: 1 / 0)
    session = python_session(export_limits(own, 'python'))
    assert session.run(None, dict(x=np.ones((1, 4), np.float32)))[0].shape == (1, 4)


def test_the_types_of_python_nodes_come_from_attributes_of_the_graph_and_errors_name_the_node(own):
    pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    seen = []

    def eager(x, limit, steps):
        seen.append((limit, steps))
        if steps == 2:
            raise ValueError('two steps are too many')
        return soft_limit(x, limit, steps)

    model = export_limits(own, 'python')
    OPERATORS[own.name] = dataclasses.replace(own, eager=eager)
    with pytest.raises(EngineError, match=r"'.+'.*SoftLimit.*limit=0.5.*steps=2"):
        python_session(model)
    assert seen == [(2.0, 1), (0.5, 2)]


def test_a_python_node_of_an_operator_that_is_not_registered_is_named(own):
    pytest.importorskip('onnxruntime_extensions', reason=EXTENSIONS)
    model = export_limits(own, 'python')
    kept = OPERATORS.pop(own.name)
    try:
        with pytest.raises(EngineError, match=r"'.+'.*mm2onnx.SoftLimit"):
            python_session(model)
    finally:
        OPERATORS[own.name] = kept


def test_expanding_twice_changes_nothing(own):
    model = export_limits(own, 'function')
    once = forms.to_standard(model)
    assert forms.to_standard(once) is once and toys.domains(once) == {''}
    assert DOMAIN not in {entry.domain for entry in once.opset_import}


def test_a_model_without_operator_nodes_is_returned_as_it_is(own):
    plain = export_limits(own, 'standard')
    assert forms.finish(plain, 'torchscript', 18, export_module) is plain


# ---- mistakes


def test_a_node_of_no_registered_operator_is_named():
    node = onnx.helper.make_node('Nothing', ['x'], ['y'], name='n1', domain=DOMAIN)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'g', [], []))
    with pytest.raises(ExportError, match=r"'n1'.*mm2onnx\.Nothing.*GreedyKeep"):
        forms.finish(model, 'torchscript', 18, export_module)


def identity(op):
    def body(x):
        y = op.Identity(x)
        return y

    return body


def of_another_input(op):
    def body(x):
        y = op.Identity(other)  # noqa: F821
        return y

    return body


def of_another_output(op):
    def body(x):
        z = op.Identity(x)
        return z

    return body


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(traceable=None), 'either a traceable form or an ONNX body'),
        (dict(body=identity), 'either a traceable form or an ONNX body'),
        (dict(traceable=None, body=identity), 'needs `shapes`'),
    ],
    ids=['neither', 'both', 'no shapes'],
)
def test_an_incomplete_operator_is_refused(own, change, message):
    with pytest.raises(ExportError, match=message):
        dataclasses.replace(own, **change)


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (of_another_input, 'other'),
        (of_another_output, r"returns \['z'\].*\['y'\]"),
    ],
)
def test_a_body_that_is_not_the_operator_is_refused(own, body, message):
    wrong = dataclasses.replace(own, traceable=None, body=body, shapes=lambda x, limit, steps: x)
    with pytest.raises(ExportError, match=message):
        forms.function_body(wrong, 'SoftLimit', {}, 18, export_module)


def test_one_name_is_one_operator(own):
    with pytest.raises(ExportError, match='SoftLimit'):
        register(own)


def test_an_unknown_form_is_refused():
    with pytest.raises(UsageError, match='expected one of standard, function'), operators_as('inline'):
        pass


def test_no_operator_imports_the_compiler_of_pytorch_when_it_is_traced():
    """As each `custom_op` does when it first runs: 1.2 s of each process that exports."""
    from torch._library.custom_ops import OPDEFS

    names = [operator.qualified for operator in OPERATORS.values()]
    assert names and not [name for name in names if name in OPDEFS]


def test_every_example_is_a_tensor_for_each_input():
    """Python nodes take the types of tensors from it, and the attributes from the graph."""
    for operator in OPERATORS.values():
        example = operator.example()
        assert len(example) == len(operator.inputs), operator.name
        assert all(isinstance(tensor, torch.Tensor) for tensor in example), operator.name
