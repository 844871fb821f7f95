"""The portable file: valid ONNX of standard operators, equal to dense convolution and to spconv."""

import numpy as np
import onnx
import onnxruntime
import pytest

import toy_sparse
from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.exporting.sparse import portable
from mmdeploy_ext.exporting.sparse.fold import reorder
from mmdeploy_ext.runtime.sparse import buckets, engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build

RTOL = 1e-4
STANDARD = {
    'Add', 'Concat', 'ConstantOfShape', 'Expand', 'Gather', 'Gemm', 'Identity', 'MatMul', 'Mul', 'Relu',
    'Reshape', 'ScatterElements', 'Shape', 'Slice', 'Split', 'Transpose',
}  # fmt: skip


def voxels_of(rows, order='xyz', grid=toy_sparse.GRID):
    features, coordinates = toy_sparse.voxels(grid, max(rows, 1))
    swapped = coordinates if order == 'xyz' else coordinates[:, [0, 3, 2, 1]]
    return features[:rows], np.ascontiguousarray(swapped[:rows])


def all_feeds(graph, features, coordinates, form):
    plan = plan_of(graph)
    return {'voxels': features, **buckets.feeds(plan, build(plan, coordinates), form)}


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.enable_mem_reuse = False
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )


@pytest.fixture(scope='module', params=['buckets', 'tables'])
def form(request):
    return request.param


@pytest.fixture(scope='module', params=['xyz', 'zyx'])
def exported(request, form):
    graph = reorder(toy_sparse.bevfusion(), request.param)
    model = portable.to_onnx(graph, form=form)
    return graph, form, model, session_of(model)


@pytest.mark.parametrize('rows', [0, 1, 200])
def test_it_equals_dense_convolution(exported, rows):
    graph, form, _, session = exported
    features, coordinates = voxels_of(rows, graph.order)  # the first eight are the corners of the grid
    found = session.run(['bev'], all_feeds(graph, features, coordinates, form))[0]
    expected = toy_sparse.dense_reference(graph, coordinates, features)[graph.output]
    assert found.shape == graph.output_shape
    assert np.abs(found - expected).max() <= RTOL * np.abs(expected).max()


def test_it_is_valid_onnx_of_standard_operators(exported):
    _, _, model, _ = exported
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert {node.op_type for node in model.graph.node} <= STANDARD
    assert {node.domain for node in model.graph.node} == {''}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', portable.DEFAULT_OPSET)]


def odd_graphs():
    """Layers that BEVFusion has not: no bias, no ReLU, 1x1x1, dilation, even kernels, half weights."""
    plain = toy_sparse.Builder(toy_sparse.GRID)
    plain.convolution('a', None, 5, 7, relu=False)
    plain.convolution('b', None, 7, 6, kernel=(1, 1, 1), padding=(0, 0, 0))
    plain.convolution('c', None, 6, 6, kernel=(1, 1, 1), stride=(1, 1, 1), padding=(0, 0, 0), relu=False)
    plain.convolution('d', None, 6, 8, kernel=(5, 1, 3), dilation=(2, 1, 2), relu=False)
    plain.convolution('e', None, 8, 8, kernel=(2, 3, 4), stride=(2, 1, 3), padding=(0, 1, 2), relu=False)
    yield 'odd layers', plain.dense(8)
    bare = toy_sparse.Builder(toy_sparse.GRID)
    bare.convolution('a', 'norm', 5, 8, kernel=(5, 5, 5))
    bare.add(toy_sparse.ScatterDense, '', (bare.tensor,), bare.shape, (1, 8, *bare.shape))
    graph = toy_sparse.fold(bare.graph((1, 8, *bare.shape)), 'fp16')
    yield 'half weights, dense output as it is', graph
    split = toy_sparse.Builder(toy_sparse.GRID)
    split.convolution('a', None, 5, 8)
    scattered = split.tensor
    split.add(toy_sparse.ScatterDense, '', (scattered,), split.shape, (1, 8, *split.shape))
    split.add(toy_sparse.Transpose, '', (split.tensor,), (0, 2, 1, 4, 3))
    shape = (1, split.shape[0], 8, split.shape[2], split.shape[1])
    yield 'a transposition of channels', split.graph(shape)


@pytest.mark.parametrize(('name', 'graph'), list(odd_graphs()), ids=[name for name, _ in odd_graphs()])
def test_other_layers(form, name, graph):
    features, coordinates = voxels_of(120)
    found = session_of(portable.to_onnx(graph, form=form)).run(
        ['bev'], all_feeds(graph, features, coordinates, form)
    )[0]
    expected = toy_sparse.dense_reference(graph, coordinates, features)[graph.output]
    assert np.abs(expected).max() > 0.1, name
    assert np.abs(found - expected).max() <= RTOL * np.abs(expected).max()
    ours = engine.run(graph, coordinates, features)
    assert np.abs(ours - expected).max() <= RTOL * np.abs(expected).max()


def test_spconv_gives_the_same(form):
    scn_nets = pytest.importorskip('scn_nets')
    import torch

    import toy_seeded as seeded
    from mmdeploy_ext.upstream.compat import single_thread

    net = scn_nets.bevfusion(
        toy_sparse.GRID, ((16, 16, 8), (8, 8, 16), (16, 16, 16), (16, 16)), output_channels=16
    )
    seeded.fill_sparse_module(net, toy_sparse.PREFIX)
    graph = toy_sparse.bevfusion(widths=(16, 8, 16, 16))
    session = session_of(portable.to_onnx(graph, form=form))
    for rows in (8, 200):
        features, coordinates = voxels_of(rows)
        with single_thread(), torch.no_grad():
            expected = net(torch.from_numpy(features), torch.from_numpy(coordinates), 1).numpy()
        found = session.run(['bev'], all_feeds(graph, features, coordinates, form))[0]
        assert np.abs(found - expected).max() <= RTOL * np.abs(expected).max()


def test_what_it_cannot_write_is_refused():
    with pytest.raises(ExportError, match='BatchNorm'):
        portable.to_onnx(toy_sparse.bevfusion(folded=False))
    with pytest.raises(UsageError, match="form='pairs'"):
        portable.to_onnx(toy_sparse.bevfusion(), form='pairs')
    with pytest.raises(UsageError, match='opset=12'):
        portable.to_onnx(toy_sparse.bevfusion(), opset=12)
