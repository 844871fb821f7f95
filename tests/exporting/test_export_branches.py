"""Code that asks whether an export runs: the user's gets the answer of PyTorch, a library's the true one."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import point_sample
from torch import nn
from torch.onnx import is_in_onnx_export

from mmdeploy_ext.exporting.export import export_module, recorded_warnings

COPY = """
from torch import nn
from torch.onnx import is_in_onnx_export


class Head(nn.Module):
    def forward(self, x):
        return x.sigmoid() if is_in_onnx_export() else x
"""


class Head(nn.Module):
    def forward(self, x):
        return x.sigmoid() if torch.onnx.is_in_onnx_export() else x * 2


class HeadOfImportedFunction(nn.Module):
    def forward(self, x):
        return helper(x)


def helper(x):
    return x.sigmoid() if is_in_onnx_export() else x * 2


class Points(nn.Module):
    """Reads a map by a function of mmcv, which has no GridSample at opset 11 except its own in an export."""

    def forward(self, x):
        places = torch.tensor([[[0.1, 0.2], [0.7, 0.9]]])
        return point_sample(x, places)


def outputs_of(module, *, records=None, **options):
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    with recorded_warnings([] if records is None else records):
        model = export_module(module.eval(), [x], input_names=['x'], **options)
    (got,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'x': x.numpy()})
    with torch.no_grad():
        return got, module(x).numpy()


@pytest.mark.parametrize('kind', [Head, HeadOfImportedFunction])
@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_users_code_is_exported_as_pytorch_runs_it_and_its_line_is_named(kind, exporter):
    records = []
    np.testing.assert_array_equal(*outputs_of(kind(), records=records, exporter=exporter))
    code = kind.forward.__code__ if kind is Head else helper.__code__
    assert {(record.file, record.line) for record in records} == {(__file__, code.co_firstlineno + 1)}


def test_a_library_knows_that_an_export_runs():
    np.testing.assert_allclose(*outputs_of(Points(), opset=11), rtol=1e-5)


@pytest.mark.parametrize(('name', 'is_library'), [('core/export/onnx_helper', True), ('models/head', False)])
def test_of_a_copied_library_the_files_that_ask_in_the_library_know_it(name, is_library, tmp_path):
    file = tmp_path / 'mmdet' / f'{name}.py'
    file.parent.mkdir(parents=True)
    (tmp_path / 'mmdet' / '__init__.py').write_text('')
    file.write_text(COPY)
    names = {}
    exec(compile(COPY, str(file), 'exec'), names)
    got, eager = outputs_of(names['Head']())
    assert np.array_equal(got, eager) != is_library


def test_the_flag_is_in_its_place_of_older_versions_too():
    assert torch.onnx.utils.is_in_onnx_export is torch.onnx.is_in_onnx_export
