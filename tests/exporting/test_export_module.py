"""`export_module` for any script: it mends what it imports, and both exporters write the same names."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmdet.models.necks import FPN

from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graph.passes.rename import name_ends
from toy_atss import load_toy

REPOSITORY = Path(__file__).resolve().parents[2]
EXPORTERS = ('torchscript', 'dynamo')
PLAIN = """
import sys
import torch
from mmdeploy_ext.exporting.export import export_module

class Net(torch.nn.Linear):
    def forward(self, x):
        left, right = self.bias.split(1)  # the exporter warns that it does not fold this
        return super().forward(x) + left - right

model = export_module(Net(4, 2), (torch.rand(3, 4),), exporter=sys.argv[1], opset=18)
print('Gemm' in [node.op_type for node in model.graph.node])
"""


@pytest.mark.matrix
@pytest.mark.parametrize('exporter', [pytest.param('torchscript', marks=pytest.mark.matrix), 'dynamo'])
def test_a_plain_script_can_call_it_without_patching_torchvision_first_and_nothing_is_printed(exporter):
    command = [sys.executable, '-c', PLAIN, exporter]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip(), done.stderr) == ('True', '')


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
    x = np.ones((5, 4), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = dict(zip(names, session.run(names, dict(input_0=x)), strict=True))
    assert [array.shape for array in found.values()] == [(5, 4), (10, 4), (5, 4), (5, 4)]


def test_an_inner_tensor_that_has_the_name_of_an_output_makes_room():
    inner = {name for node in export('dynamo').graph.node for name in node.output}
    assert 'cat' not in inner and 'mul' not in inner
    model = export('dynamo', output_names=('cat', 'mul'))
    assert list(sizes(model.graph.output))[:2] == ['cat', 'mul']
    onnx.checker.check_model(model, full_check=True)


def test_a_file_of_dynamo_holds_neither_paths_nor_lines_of_the_source():
    written = export('dynamo').SerializeToString()
    assert Path(__file__).name.encode() not in written
    assert str(Path(torch.__file__).parent).encode() not in written


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(dynamic={'x': {0: 'N'}}), r'dynamic names x\b'),
        (dict(dynamic={'input_0': {2: 'N'}}), r'dynamic axis 2 of input_0\b'),
        (dict(output_names=('output_1',)), r'\boutput_1\b'),
    ],
)
def test_names_that_cannot_be_given_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        export('torchscript', **options)


@pytest.mark.parametrize(
    'options',
    [
        dict(input_names=('x',), output_names=('x',), dynamic=None),
        dict(output_names=('x', 'x')),
        dict(input_names=('x', 'x')),
    ],
)
def test_one_name_for_two_ends_is_refused(options):
    with pytest.raises(UsageError, match=r'^x '):
        export('torchscript', **options)


@pytest.mark.parametrize('exporter', EXPORTERS)
def test_more_names_than_outputs_are_refused(exporter):
    with pytest.raises((UsageError, ExportError), match=r'\b[45]\b.*\b[45]\b'):
        export(exporter, output_names=tuple('abcde'))


class Folded(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.fold(x, (4, 4), 2)


def test_an_operator_of_a_later_opset_is_named_with_the_option_and_no_graph_is_printed(capfd):
    with pytest.raises(ExportError, match=r'col2im.*: --opset-version 18$'):
        export_module(Folded(), [torch.ones(1, 8, 9)])
    assert capfd.readouterr().out == ''
    assert export_module(Folded(), [torch.ones(1, 8, 9)], opset=18)


def test_a_part_with_a_function_in_the_place_of_its_method_is_exported(monkeypatch):
    build = FPN.__init__

    def build_and_hold(self, **settings):
        build(self, **settings)
        forward = self.forward
        self.forward = lambda maps: forward(maps)

    monkeypatch.setattr(FPN, '__init__', build_and_hold)
    deployment = load_toy()

    class Neck(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = copy.deepcopy(deployment.model.neck)

        def forward(self, *maps):
            return self.neck(maps)

    maps = [torch.ones(1, channels, 16 >> level, 16 >> level) for level, channels in enumerate((32, 64, 128))]
    model = export_module(Neck().eval(), maps)
    assert [node.op_type for node in model.graph.node].count('Conv') == 8
