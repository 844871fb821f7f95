"""What point clouds need on the CPU: spconv without its race, with a bias and no voxel; dynamic scatter."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sp = pytest.importorskip('spconv.pytorch')
threadpoolctl = pytest.importorskip('threadpoolctl')
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='these patches are for the CPU')
KINDS = pytest.mark.parametrize('kind', ['submanifold', 'strided'])


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


def convolution(kind, channels=16, bias=False):
    torch.manual_seed(1)
    if kind == 'submanifold':
        return sp.SubMConv3d(channels, channels, 3, bias=bias)
    return sp.SparseConv3d(channels, channels, 3, stride=2, padding=1, bias=bias)


@KINDS
@torch.no_grad()
def test_many_threads_outside_do_not_change_the_convolution(kind):
    """Without the patch some runs have wrong rows, by 1 and more: up to 6 of 8 on a busy machine, or none."""
    side, (features, indices), conv = 30, cloud(20000, 30, 16), convolution(kind)
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with threadpoolctl.threadpool_limits(limits=8, user_api='openmp'):
            runs = [conv(sp.SparseConvTensor(features, indices, [side] * 3, 1)) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    expected = dense_convolution(features.double(), indices, side, conv, runs[0].indices)
    for out in runs:
        torch.testing.assert_close(out.features.double(), expected, rtol=0, atol=1e-5)


@KINDS
@torch.no_grad()
def test_a_bias_and_an_activation_come_after_the_convolution(kind):
    from cumm import tensorview as tv

    features, indices = cloud(100, 8, 4)
    conv, plain = convolution(kind, 4, bias=True).eval(), convolution(kind, 4).eval()
    plain.weight.data = conv.weight.data  # mmdet3d's load_state_dict would permute it
    tensor = sp.SparseConvTensor(features, indices, [8] * 3, 1)
    expected = plain(tensor).features + conv.bias
    torch.testing.assert_close(conv(tensor).features, expected)
    conv.act_type = tv.gemm.Activation.ReLU
    torch.testing.assert_close(conv(tensor).features, expected.relu())


@KINDS
@torch.no_grad()
def test_a_sweep_of_no_voxel_gives_no_site(kind):
    empty = sp.SparseConvTensor(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32), [8] * 3, 1)
    out = convolution(kind, 4)(empty)
    assert out.features.shape == (0, 4) and out.dense().abs().sum() == 0


# ---- mmcv's dynamic scatter


def scatter_reference(feats, coors, reduce):
    rows = {}
    for feat, coor in zip(feats.tolist(), coors.tolist(), strict=True):
        if min(coor) >= 0:
            rows.setdefault(tuple(coor), []).append(feat)
    function = dict(mean=np.mean, sum=np.sum, max=np.max)[reduce]
    keys = sorted(rows)
    return np.array([function(np.array(rows[key]), axis=0) for key in keys]), np.array(keys)


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_dynamic_scatter_equals_the_slow_reference(reduce):
    from mmcv.ops.scatter_points import dynamic_scatter

    generator = torch.Generator().manual_seed(3)
    coors = torch.randint(-1, 3, (60, 3), generator=generator)
    feats = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    values, voxels = dynamic_scatter(feats, coors, reduce)
    expected, keys = scatter_reference(feats, coors, reduce)
    np.testing.assert_array_equal(voxels.numpy(), keys)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match='reduce_type'):
        dynamic_scatter(feats, coors, 'min')


def test_the_dynamic_scatter_module_takes_batches_and_no_points():
    from mmcv.ops import DynamicScatter

    scatter = DynamicScatter([1, 1, 1], [0, 0, 0, 4, 4, 4], True)
    coors = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]])
    means, voxels = scatter(torch.tensor([[1.0], [3.0], [7.0]]), coors)
    assert means.tolist() == [[2.0], [7.0]] and voxels.tolist() == [[0, 0, 0, 1], [1, 0, 0, 1]]
    means, voxels = scatter(torch.zeros(0, 1), torch.zeros(0, 3, dtype=torch.int64))
    assert means.shape == (0, 1) and voxels.shape == (0, 3)
