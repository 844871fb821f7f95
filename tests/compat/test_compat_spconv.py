"""What point clouds need on the CPU: spconv without its race, with a bias and no voxel; dynamic scatter."""

import subprocess
import sys
import types

import numpy as np
import pytest

from mmdeploy_ext import compat

torch = pytest.importorskip('torch')
sp = pytest.importorskip('spconv.pytorch')
threadpoolctl = pytest.importorskip('threadpoolctl')
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason='this patch is for machines without a GPU')


def cloud(count, side, channels, seed=0):
    """Features (N, C) and distinct coordinates (N, 4) in a cube."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(side**3, generator=generator)[:count]
    axes = [torch.zeros_like(cells), cells // side**2, cells // side % side, cells % side]
    return torch.randn(count, channels, generator=generator), torch.stack(axes, 1).int()


def dense_convolution(features, indices, side, conv, sites):
    """The same by torch's dense convolution in float64, read at the output sites."""
    at = tuple(indices.long().t())
    dense = features.new_zeros(1, side, side, side, features.shape[1]).index_put(at, features)
    weight = conv.weight.detach().to(features).permute(0, 4, 1, 2, 3)
    stride, padding = (1, 1) if conv.subm else (conv.stride, conv.padding)
    out = torch.nn.functional.conv3d(dense.permute(0, 4, 1, 2, 3), weight, stride=stride, padding=padding)
    return out.permute(0, 2, 3, 4, 1)[tuple(sites.long().t())]


@pytest.fixture
def many_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    with threadpoolctl.threadpool_limits(limits=8, user_api='openmp'):
        yield
    torch.set_num_threads(threads)


def convolution(kind, channels=16, bias=False):
    torch.manual_seed(1)
    return (
        sp.SubMConv3d(channels, channels, 3, bias=bias)
        if kind == 'submanifold'
        else sp.SparseConv3d(channels, channels, 3, stride=2, padding=1, bias=bias)
    )


@ON_CPU
@pytest.mark.parametrize('kind', ['submanifold', 'strided'])
def test_many_threads_outside_do_not_change_the_convolution_or_its_gradient(kind, many_threads):
    """Without the patch some runs have wrong rows, by 1 and more: up to 6 of 8 on a busy machine, or none."""
    side, (features, indices), conv = 30, cloud(20000, 30, 16), convolution(kind)
    for run in range(4):
        sparse_in = features.clone().requires_grad_()
        conv.weight.grad = None
        out = conv(sp.SparseConvTensor(sparse_in, indices, [side] * 3, 1))
        grad = torch.randn(out.features.shape, generator=torch.Generator().manual_seed(2))
        out.features.backward(grad)
        assert torch.get_num_threads() == 8
        if run == 0:
            dense_in = features.double().requires_grad_()
            expected = dense_convolution(dense_in, indices, side, conv, out.indices)
            expected.backward(grad.double())
        torch.testing.assert_close(out.features.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(sparse_in.grad.double(), dense_in.grad, rtol=0, atol=1e-5)


@ON_CPU
@pytest.mark.parametrize('kind', ['submanifold', 'strided'])
def test_every_kernel_of_spconv_sees_one_thread_forward_and_backward(kind, many_threads, monkeypatch):
    """The race shows by chance; the number of threads around its kernels does not."""
    seen = {}

    def watch(name, function):
        def watched(*args, **kwargs):
            counts = {
                lib['num_threads'] for lib in threadpoolctl.threadpool_info() if 'mp' in lib['user_api']
            }
            seen.setdefault(name, set()).update(counts | {torch.get_num_threads()})
            return function(*args, **kwargs)

        return watched

    from spconv.pytorch import ops

    kernels = ('gather_cpu', 'scatter_add_cpu', 'get_indice_pairs')
    watched = {name: watch(name, getattr(ops.SpconvOps, name)) for name in kernels}
    stand_in = type('SpconvOps', (), {name: staticmethod(function) for name, function in watched.items()})
    monkeypatch.setattr(ops, 'SpconvOps', stand_in)
    features, indices = cloud(50, 6, 4)
    out = convolution(kind, 4)(sp.SparseConvTensor(features, indices, [6] * 3, 1))
    assert seen == {kernel: {1} for kernel in kernels}
    seen.clear()
    out.features.sum().backward()
    assert seen == {kernel: {1} for kernel in kernels[:2]}


@ON_CPU
def test_the_gradient_of_the_weights_equals_dense_convolutions():
    side, (features, indices), conv = 8, cloud(200, 8, 4), convolution('strided', 4)
    out = conv(sp.SparseConvTensor(features, indices, [side] * 3, 1))
    out.features.square().sum().backward()
    dense = features.new_zeros(1, side, side, side, 4).index_put(tuple(indices.long().t()), features)
    weight = conv.weight.detach().clone().requires_grad_()
    torch.nn.functional.conv3d(
        dense.permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), stride=2, padding=1
    ).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)


@ON_CPU
def test_a_bias_and_an_activation_come_after_the_convolution_in_evaluation_and_training():
    from cumm import tensorview as tv

    features, indices = cloud(100, 8, 4)
    for kind in ('submanifold', 'strided'):
        conv = convolution(kind, 4, bias=True)
        plain = convolution(kind, 4)
        plain.weight.data = conv.weight.data  # mmdet3d's load_state_dict would permute it
        tensor = sp.SparseConvTensor(features, indices, [8] * 3, 1)
        expected = plain(tensor).features + conv.bias
        torch.testing.assert_close(conv.train()(tensor).features, expected)
        torch.testing.assert_close(conv.eval()(tensor).features, expected)
        conv.act_type = tv.gemm.Activation.ReLU
        torch.testing.assert_close(conv(tensor).features, expected.relu())


@ON_CPU
@pytest.mark.parametrize('kind', ['submanifold', 'strided'])
def test_a_sweep_of_no_voxel_gives_no_site_and_gradients_of_zero(kind):
    conv = convolution(kind, 4)
    features = torch.zeros(0, 4, requires_grad=True)
    out = conv(sp.SparseConvTensor(features, torch.zeros(0, 4, dtype=torch.int32), [8] * 3, 1))
    assert out.features.shape == (0, 4) and out.dense().abs().sum() == 0
    out.features.sum().backward()
    assert conv.weight.grad.abs().sum() == 0
    pairs = torch.zeros(2, 27, 0, dtype=torch.int32), torch.zeros(27, dtype=torch.int32)
    from spconv.pytorch import ops

    empty = ops.indice_conv(features.detach(), conv.weight.detach(), *pairs, num_activate_out=0)
    assert empty.shape == (0, 4)


def test_dense_puts_features_at_their_sites_without_a_warning_and_with_gradients(recwarn):
    features, indices = cloud(40, 5, 3)
    features.requires_grad_()
    dense = sp.SparseConvTensor(features, indices, [5] * 3, 1).dense()
    expected = torch.zeros(1, 5, 5, 5, 3)
    for row, site in zip(features.tolist(), indices.tolist(), strict=True):
        expected[tuple(site)] = torch.tensor(row)
    assert torch.equal(dense, expected.permute(0, 4, 1, 2, 3))
    assert not [warning for warning in recwarn if 'multidimensional indexing' in str(warning.message)]
    dense.square().sum().backward()
    torch.testing.assert_close(features.grad, 2 * features.detach())


def test_tensors_on_a_gpu_go_to_the_original_untouched():
    from mmdeploy_ext.compat import patches_spconv

    seen = []

    def original(*args, **kwargs):
        seen.append((args, kwargs))

    gpu = types.SimpleNamespace(is_cuda=True)
    patches_spconv.one_thread_on_cpu(original)(gpu, 1, bias=2)
    patches_spconv.convolution_on_cpu(original, None)(gpu, 1, 2, 3, 4, bias=5, act_type=6)
    patches_spconv.gradient_on_cpu(original)(gpu, 1, 2)
    assert seen == [
        ((gpu, 1), dict(bias=2)),
        ((gpu, 1, 2, 3, 4), dict(bias=5, act_type=6)),
        ((gpu, 1, 2), {}),
    ]


def test_without_the_patch_a_bias_and_an_empty_sweep_are_refused():
    from spconv.pytorch import ops

    features, indices = cloud(10, 4, 4)
    conv = convolution('strided', 4, bias=True)
    pairs = ops.get_indice_pairs(
        indices,
        1,
        [4] * 3,
        sp.ConvAlgo.Native,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.output_padding,
    )
    with pytest.raises(AssertionError, match="don't"):
        ops.indice_conv.__wrapped__(
            features, conv.weight.detach(), pairs[1], pairs[2], len(pairs[0]), bias=conv.bias.detach()
        )


# ---- mmcv's dynamic scatter and voxelisation


def scatter_reference(feats, coors, reduce):
    rows = {}
    for feat, coor in zip(feats.tolist(), coors.tolist(), strict=True):
        if min(coor) >= 0:
            rows.setdefault(tuple(coor), []).append(feat)
    function = dict(mean=np.mean, sum=np.sum, max=np.max)[reduce]
    keys = sorted(rows)
    return np.array([function(np.array(rows[key]), axis=0) for key in keys]), np.array(keys)


@ON_CPU
@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_dynamic_scatter_equals_the_slow_reference_and_its_gradient_the_finite_differences(reduce):
    from mmcv.ops import scatter_points

    generator = torch.Generator().manual_seed(3)
    coors = torch.randint(-1, 3, (60, 3), generator=generator)
    feats = torch.randn(60, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    values, voxels = scatter_points.dynamic_scatter(feats, coors, reduce)
    expected, keys = scatter_reference(feats.detach(), coors, reduce)
    np.testing.assert_array_equal(voxels.numpy(), keys)
    np.testing.assert_allclose(values.detach().numpy(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: scatter_points.dynamic_scatter(x, coors, reduce)[0], feats)


@ON_CPU
def test_of_equal_greatest_values_the_first_point_gets_the_gradient():
    from mmcv.ops.scatter_points import dynamic_scatter

    feats = torch.tensor([[1.0], [5.0], [5.0], [2.0]], requires_grad=True)
    coors = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0], [-1, 0, 0]])
    dynamic_scatter(feats, coors, 'max')[0].sum().backward()
    assert feats.grad.flatten().tolist() == [0, 1, 0, 0]


@ON_CPU
def test_a_feature_that_is_nan_makes_the_maximum_of_its_voxel_nan():
    from mmcv.ops.scatter_points import dynamic_scatter

    feats = torch.tensor([[1.0, float('nan')], [3.0, 2.0], [5.0, 4.0]])
    values, _ = dynamic_scatter(feats, torch.tensor([[0, 0], [0, 0], [0, 1]], dtype=torch.int32), 'max')
    torch.testing.assert_close(values, torch.tensor([[3.0, float('nan')], [5.0, 4.0]]), equal_nan=True)


@ON_CPU
def test_the_dynamic_scatter_module_takes_batches_and_no_points():
    from mmcv.ops import DynamicScatter

    scatter = DynamicScatter([1, 1, 1], [0, 0, 0, 4, 4, 4], True)
    coors = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]])
    means, voxels = scatter(torch.tensor([[1.0], [3.0], [7.0]]), coors)
    assert means.tolist() == [[2.0], [7.0]] and voxels.tolist() == [[0, 0, 0, 1], [1, 0, 0, 1]]
    means, voxels = scatter(torch.zeros(0, 1), torch.zeros(0, 3, dtype=torch.int64))
    assert means.shape == (0, 1) and voxels.shape == (0, 3)


@ON_CPU
def test_without_the_patch_dynamic_scatter_has_no_kernel():
    from mmcv.ops.scatter_points import _DynamicScatter

    with pytest.raises(RuntimeError, match=r'cpu|CPU'):
        _DynamicScatter.apply(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), 'mean')


def test_the_patches_took_effect():
    import mmcv.ops  # noqa: F401

    names = {patch.name for patch in compat.effective()}
    assert {'spconv_one_thread', 'spconv_convolution_on_cpu', 'dynamic_scatter_without_gpu'} <= names


MAKE_ONE = """
{first}
import spconv.pytorch as sp, torch
sp.SparseConvTensor(torch.zeros(1, 4), torch.zeros(1, 4).int(), [2, 2, 2], 1)
"""


def test_a_sparse_tensor_says_nothing_on_stderr():
    first = 'from mmdeploy_ext import compat; compat.apply()'
    words = [sys.executable, '-c', MAKE_ONE.format(first=first)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, '')
