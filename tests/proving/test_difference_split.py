"""The split of a difference: a constant that the export rounds is the export's, in its module."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mmdeploy_ext import prove
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.graphs.diff.findings import DiffBars
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.proving.difference import PARTS, Compared, Search, difference_lines, split_lines
from mmdeploy_ext.spec.tensors import Stage
from mmdeploy_ext.spec.verdict import Finding, Verdict
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy


class Toy(torch.nn.Module):
    """Two convolutions and a squashing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Tokens(Toy):
    """A convolution, and layers of the tokens of one picture."""

    def __init__(self):
        super().__init__()
        self.second, self.last = torch.nn.Linear(8, 4), torch.nn.GELU()

    def forward(self, x):
        return self.last(self.second(self.first(x).flatten(2).transpose(1, 2).contiguous()))


def split(model, graph):
    x = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    search = Search(Compared([Stage('', model, ('x',), ('y',))], dict(x=x), None, ''), DiffBars())
    search.compare(graph, fresh=False)
    return search.split()


def exported(model, tmp_path):
    path = tmp_path / 'm.onnx'
    names = dict(input_names=['x'], output_names=['y'])
    torch.onnx.export(model, torch.zeros(1, 3, 12, 12), str(path), opset_version=17, dynamo=False, **names)
    return onnx.load(path)


def test_a_right_export_differs_by_rounding_alone(tmp_path):
    model = Toy().eval()
    found, narrow = split(model, exported(model, tmp_path))
    assert {entry.module for entry in found} >= {'first', 'second'} and not narrow
    for entry in found:
        assert all(part < 1e-5 for part in entry.parts) and entry.parts[2] < 1e-12
    assert len(split_lines(found, narrow)) == len(PARTS)


@pytest.mark.parametrize('kind', [Toy, Tokens])
def test_a_rounded_weight_is_the_share_of_the_export_and_named_by_its_module(kind, tmp_path):
    model = kind().eval()
    graph = exported(model, tmp_path)
    for tensor in graph.graph.initializer:
        if not tensor.name.startswith('first') and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found, narrow = split(model, graph)
    last = found[-1]
    assert last.parts[2] > 1e-5 > max(last.parts[:2])
    assert 'second' in split_lines(found, narrow)[2]


@pytest.mark.matrix
@pytest.mark.parametrize(('factor', 'is_near'), [(1 + 2e-4, True), (1.5, False)])
def test_a_verdict_names_the_module_whose_weights_are_off_and_splits_a_small_difference(
    factor, is_near, tmp_path
):
    detector, path = load_toy(), export_toy(load_toy(), tmp_path / 'm.onnx', height=128, width=160)
    model = files.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith('atss_reg.weight'))
    array = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    files.save(model, tmp_path / 'off.onnx')
    verdict = prove(CONFIG, CHECKPOINT, tmp_path / 'off.onnx', samples=[str(PICTURE)], edited=True)
    images = kind_of(detector.family).images_of_difference(detector, [str(PICTURE)])
    first, *split = difference_lines(detector, [str(tmp_path / 'off.onnx')], images, verdict)
    assert not verdict.passed and 'module bbox_head.atss_reg' in first
    assert (len(split) >= len(PARTS)) == is_near
    assert not is_near or 'atss_reg' in split[2]


def test_a_proven_file_has_no_difference():
    detector = load_toy()
    verdict = Verdict({}, [Finding('outputs', 'y', True, '', dict(tensor='y', max_abs=1e-5, tolerance=1e-4))])
    assert difference_lines(detector, ['no file is read'], None, verdict) == []
