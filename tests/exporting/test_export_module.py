"""`export_module` for any script: it mends what it imports, and both exporters write the same names."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmcv.ops import deform_conv2d

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import default_group_norm, default_opset, export_module, export_stages
from mmdeploy_ext.exporting.torch_patches import constant_linspace
from mmdeploy_ext.graphs.passes.rename import name_ends
from mmdeploy_ext.graphs.passes.simplify import simplify
from mmdeploy_ext.spec.options import EXPORTER, OPSET, SIMPLIFY, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

EXPORTERS = ('torchscript', 'dynamo')


class Ends(torch.nn.Module):
    """Outputs of many kinds: computed, longer than the input, the input itself, one tensor twice."""

    def forward(self, x):
        twice = x * 2
        return twice, torch.cat([x, x]), x, twice


def sizes(values):
    """Return name -> axes."""
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def export(exporter, **options):
    options = {'dynamic': {'input_0': {0: 'N'}}, **options}
    return export_module(Ends(), (torch.rand(3, 4),), exporter=exporter, opset=18, **options)


class OneOfTwo(torch.nn.Module):
    def forward(self, x, unused):
        return x * 2


def test_axes_of_an_input_that_the_graph_lacks_are_left_out():
    given, axes = (torch.rand(3, 4), torch.rand(3)), {'x': {0: 'N'}, 'y': {0: 'N'}}
    model = export_module(OneOfTwo(), given, input_names=('x', 'y'), opset=18, dynamic=axes)
    assert sizes(model.graph.input) == {'x': ['N', 4]}


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_names_of_ends_and_axes_are_the_same_with_both_exporters(exporter):
    names = ['a', 'b', 'output_2', 'output_3']
    model = export(exporter, output_names=('a', 'b'), dynamic={'input_0': {0: 'N'}, names[1]: {0: 'M'}})
    onnx.checker.check_model(model, full_check=True)
    assert sizes(model.graph.input) == {'input_0': ['N', 4]}
    assert sizes(model.graph.output) == {
        names[0]: ['N', 4],
        names[1]: ['M', 4],
        names[2]: ['N', 4],
        names[3]: ['N', 4],
    }
    assert name_ends(model, names, {'input_0': {0: 'N'}}) == model
    assert Path(__file__).name.encode() not in model.SerializeToString()
    x = np.ones((5, 4), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = dict(zip(names, session.run(names, dict(input_0=x)), strict=True))
    assert [array.shape for array in found.values()] == [(5, 4), (10, 4), (5, 4), (5, 4)]


class Places(torch.nn.Module):
    """The places of a grid whose size is a number, as BEVFormer's."""

    def forward(self, x):
        return x + torch.linspace(0.5, 3.5, 4, dtype=x.dtype)


def test_places_of_a_grid_are_a_constant_of_a_trace():
    x = torch.rand(3, 4)
    with constant_linspace():
        traced = torch.jit.trace(Places(), x)
    assert 'aten::linspace' not in {node.kind() for node in traced.graph.nodes()}
    assert torch.equal(traced(x + 1), Places()(x + 1))


class TimesFlags(torch.nn.Module):
    """BEVFormer's `can_bus * self.use_can_bus`."""

    def forward(self, x):
        return x * True + False * x


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_a_product_with_a_flag_is_one_with_a_number(exporter):
    x = torch.rand(3, 4)
    model = export_module(TimesFlags(), (x,), exporter=exporter, opset=18)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    np.testing.assert_array_equal(session.run(None, dict(input_0=x.numpy()))[0], x)


class Folded(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.fold(x, (4, 4), 2)


def test_an_operator_of_a_later_opset_is_named_with_the_option_and_no_graph_is_printed(capfd):
    with pytest.raises(ExportError, match=r'col2im.*: --opset-version 18$'):
        export_module(Folded(), [torch.ones(1, 8, 9)])
    assert capfd.readouterr().out == ''
    assert export_module(Folded(), [torch.ones(1, 8, 9)], opset=18)


def test_focus_of_yolox_is_one_convolution_with_the_same_values():
    from mmdet.models.backbones.csp_darknet import Focus

    focus, images = Focus(3, 8, kernel_size=3).eval(), torch.randn(2, 3, 32, 48)
    copied = prepared(focus)
    assert not isinstance(copied, Focus) and torch.equal(copied(images), focus(images))


class Reshapes(torch.nn.Module):
    def forward(self, x):
        return x.reshape(12).reshape(2, 6).reshape(6, 2) * 2


def test_the_option_simplify_leaves_one_of_three_reshapes():
    x, y = TensorSpec('x', 'float32', (3, 4)), TensorSpec('y', 'float32', (6, 2))
    model = export_stages(
        [Stage('reshapes', Reshapes(), ('x',), ('y',))],
        dict(x=torch.rand(3, 4)),
        GraphSpec('toy', (x,), (y,)),
        Options((OPSET, EXPORTER, SIMPLIFY), simplify=True),
    )
    assert sorted(node.op_type for node in model.graph.node) == ['Mul', 'Reshape']
    assert sizes(model.graph.output) == {'y': [6, 2]}


class Counted(torch.nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * 2


def test_a_stage_runs_once_for_its_export():
    stages = [Stage('first', Counted(), ('x',), ('y',)), Stage('second', Counted(), ('y',), ('z',))]
    contract = GraphSpec('toy', *((TensorSpec(name, 'float32', ('N', 4)),) for name in 'xz'))
    model = export_stages(stages, dict(x=torch.rand(3, 4)), contract, Options((OPSET, EXPORTER, SIMPLIFY)))
    assert [stage.module.calls for stage in stages] == [1, 1]
    assert [node.op_type for node in model.graph.node].count('Mul') == 2


def test_simplified_graphs_keep_no_shapes_whose_symbols_depend_on_the_hash_seed():
    model = export_module(Reshapes(), (torch.rand(3, 4),), opset=17)
    assert not simplify(model).graph.value_info


class Deformed(torch.nn.Module):
    """Calls mmcv's function, with a size of its input as the number of groups of offsets."""

    def __init__(self, sized=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(4, 3, 3, 3))
        self.offset = torch.nn.Conv2d(3, 18, 3, padding=1)
        self.sized = sized

    def forward(self, x):
        groups = x.shape[1] // 3 if self.sized else 1
        return deform_conv2d(x, self.offset(x), self.weight, 1, 1, 1, 1, groups)


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_the_default_opset_has_deform_conv_where_a_module_calls_its_function(exporter):
    module = Deformed().eval()
    assert default_opset(module, exporter) == 19
    model = export_module(module, (torch.rand(1, 3, 8, 8),), exporter=exporter, opset=19)
    assert 'DeformConv' in {node.op_type for node in model.graph.node}


class Mixed(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(x)


class Frequencies(torch.nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).real


@pytest.mark.parametrize(
    ('mixer', 'said'), [(Frequencies(), r'fft_rfft2.*mixer'), (Deformed(sized=True), r'deform_groups.*mixer')]
)
def test_what_torchscript_cannot_translate_is_named_with_module_and_line(mixer, said):
    with pytest.raises(ExportError, match=rf'(?s){said}.*test_export_module\.py:\d+, in forward'):
        export_module(Mixed(mixer).eval(), (torch.rand(1, 3, 8, 8),), dynamic={'input_0': {2: 'h'}}, opset=19)


def test_defaults_follow_from_the_exporter_and_the_norms_of_the_backbone():
    model = torch.nn.ModuleDict(dict(backbone=torch.nn.ReLU(), neck=torch.nn.GroupNorm(1, 2)))
    assert [default_opset(model, exporter) for exporter in ('torchscript', 'dynamo')] == [17, 18]
    assert default_group_norm(model) == ''
    model.backbone = torch.nn.Sequential(torch.nn.GroupNorm(1, 2))
    assert default_group_norm(model) == 'exact'


def test_a_file_of_dynamo_has_the_lowest_ir_version_of_its_opset():
    model = export_module(torch.nn.ReLU(), (torch.rand(2),), exporter='dynamo', opset=18)
    assert model.ir_version == 8
