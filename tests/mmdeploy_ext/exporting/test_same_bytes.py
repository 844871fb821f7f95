"""The constants of exported files have the same bytes on every machine, under any threads and kernels."""

import copy
import os
import subprocess
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_constants
from marking import in_suite
from mmdeploy_ext.exporting.same_bytes import SameBytes, power
from mmdeploy_ext.families.rtdetr.graphs import with_fixed_size
from mmdeploy_ext.models.rtdetr.decoder import Anchors
from mmdeploy_ext.models.rtdetr.encoder import PositionEmbedding

PINNED = {
    'atss': '144a9247d12569947d66b6a2f2e16cb0354acc5730b37900cec0a4cf09df6735',
    'solov2': '776eaa743e82fad77270f076363f8cea6812d48fb632d057f6f25dee6cacc5c5',
    'decoupled_solo': '187724b23c3c133770947d3f4c76acad586720478343cf1d37ac678060164cdf',
    'rtdetr': 'c6bdb5b407df4550e7b5bd7a204b890740c12ac8fc46c6066a53b303535df2f3',
    'rtdetr fixed': '35263cc10cb6e345920c76ee9babb2b597f0f1c692e1208f3b0d149b53e65dbe',
    'rtdetr simplified': '87d6216e610b441e3a7651ea3f7d3660f9db384d97bdc3d3a1333f31821f1d23',
    'stream_petr': 'c91fd6027199bde346a660a77d096cc944d54127ef9f11ec884cdc6943d16b0b',
    'stream_petr fork': '81144ec7d1a35439e75ce478d1df5f8ea7bd561e386ff0142b29ce24fc1711ee',
    'centerpoint': '2bb05cb495c7a4dbf1f8f3333b8e61aec377dd0021d995391db82868fb025ddc',
}
OLD_CPU = dict(
    ATEN_CPU_CAPABILITY='default',
    GLIBC_TUNABLES='glibc.cpu.hwcaps=-AVX2,-FMA',
    MKL_ENABLE_INSTRUCTIONS='SSE4_2',
    NPY_DISABLE_CPU_FEATURES='AVX2 FMA3 AVX512F AVX512CD AVX512_SKX',
    ONEDNN_MAX_CPU_ISA='SSE41',
    OMP_NUM_THREADS='2',
)
"""Kernels of a CPU without AVX, as far as each library can be told."""


VARIANTS = 'decoupled_solo', 'solov2', 'rtdetr', 'rtdetr fixed', 'rtdetr simplified', 'stream_petr fork'
"""Constants come from the modules of another toy here."""


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.matrix] if name in VARIANTS else [])
        for name in (*toy_constants.IMAGES, *toy_constants.STREAMS)
    ],
)
def test_the_constants_of_a_toy_are_pinned(name):
    assert toy_constants.digest(name) == PINNED[name]


@pytest.mark.matrix
def test_the_kernels_of_an_old_cpu_give_the_same_constants():
    """By its learned queries, StreamPETR's toy has the most arithmetic in its constants."""
    command = [sys.executable, '-W', 'ignore', toy_constants.__file__, 'stream_petr']
    found = subprocess.run(command, env={**os.environ, **OLD_CPU}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f'stream_petr {PINNED["stream_petr"]}\n'


class OtherCpu(TorchFunctionMode):
    """Another make of CPU, worse than any: whatever its kernels are chosen for is one unit too large."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        chosen = getattr(func, '__name__', '').strip('_') in CHOSEN_KERNELS
        if chosen and isinstance(result, torch.Tensor) and result.is_floating_point():
            values = result.detach().numpy()  # in place: a trace does not see it
            np.nextafter(values, np.float32(np.inf), out=values)
        return result


CHOSEN_KERNELS = {
    *('cos', 'exp', 'log', 'pow', 'rpow', 'rsqrt', 'sin', 'sqrt'),
    *('addmm', 'bmm', 'conv2d', 'einsum', 'layer_norm', 'linear', 'matmul', 'mm', 'rmatmul'),
}


@pytest.mark.parametrize('name', in_suite(['atss', 'stream_petr'], 'atss'))
def test_kernels_that_round_otherwise_change_no_constant(name):
    with OtherCpu():
        assert torch.ones(1).sqrt() > 1
        assert toy_constants.digest(name) == PINNED[name]


def test_positions_and_anchors_of_a_fixed_size_are_the_modules_own_up_to_rounding():
    model, maps = nn.Module(), [torch.empty(1, 32, 64 // 2**level, 96 // 2**level) for level in range(3)]
    model.encoder, model.decoder = nn.Module(), nn.Module()
    model.encoder.position, model.decoder.anchors = PositionEmbedding(32), Anchors()
    model.gate = nn.Parameter(torch.zeros(1))
    wanted, original = [model.encoder.position(maps[-1]), *model.decoder.anchors(maps)], copy.deepcopy(model)
    with OtherCpu():
        with_fixed_size(model, 512, 768)
    found = [model.encoder.position(maps[-1]), *model.decoder.anchors(maps)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-7, atol=5e-7)
    with_fixed_size(again := copy.deepcopy(original), 512, 768)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), again.buffers(), strict=True))


def numbers(*shape):
    """Return float32 of both signs and many sizes."""
    generator = np.random.default_rng(0)
    return torch.from_numpy((generator.integers(-(2**20), 2**20, shape) / 2**17).astype(np.float32))


@pytest.mark.parametrize('name', ['sqrt', 'exp', 'ln'])
def test_functions_are_rounded_correctly(name):
    """As 40 digits are: torch's own kernels miss some of these by a unit, on some CPU others."""
    values = numbers(4000).abs() + 2**-18
    with SameBytes():
        got = getattr(torch, dict(ln='log').get(name, name))(values)
        assert torch.equal(got, getattr(values, dict(ln='log').get(name, name))())
    with localcontext() as context:
        context.prec = 40
        wanted = [float(getattr(Decimal(value), name)()) for value in values.tolist()]
    assert np.array_equal(got.numpy(), np.float32(wanted))


@pytest.mark.parametrize('steps', [1, 2, 13, 37, 217])
def test_spaced_numbers_are_those_of_torch_up_to_rounding_and_equal_with_avx2(steps):
    wanted = torch.linspace(torch.tensor(-0.16), torch.tensor(68.96), steps)
    with SameBytes():
        got = torch.linspace(torch.tensor(-0.16), torch.tensor(68.96), steps, device='cpu')
    torch.testing.assert_close(got, wanted, rtol=2e-7, atol=1e-6)
    if torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512'):
        assert torch.equal(got, wanted)


def test_products_and_normalisations_are_those_of_float64():
    rows, layer = numbers(2, 5, 300), nn.Linear(300, 7)
    layer.weight.data, layer.bias.data = numbers(7, 300), numbers(7)
    with torch.no_grad(), SameBytes():
        product, plain = layer(rows), F.linear(rows, layer.weight)
        normed, scaled = F.layer_norm(rows, (300,)), F.layer_norm(rows, (300,), rows[0, 0], rows[0, 1], 1e-3)
    wide = rows.double().numpy()
    wanted = wide @ layer.weight.detach().double().numpy().T
    assert np.array_equal(plain.numpy(), wanted.astype(np.float32))
    assert np.array_equal(product.numpy(), (wanted + layer.bias.detach().double().numpy()).astype(np.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    np.testing.assert_allclose(normed, centred / np.sqrt(variance + 1e-5), rtol=1e-7, atol=0)
    wanted = centred / np.sqrt(variance + 1e-3) * wide[0, 0] + wide[0, 1]
    np.testing.assert_allclose(scaled, wanted, rtol=1e-6, atol=1e-6)


def test_arguments_have_torchs_names_and_axes_that_are_not_computed_are_refused():
    values = numbers(4, 6)
    with SameBytes():
        assert torch.equal(F.layer_norm(input=values, normalized_shape=(6,)), F.layer_norm(values, (6,)))
        assert torch.equal(torch.sqrt(input=values.abs()), values.abs().sqrt())
        with pytest.raises(NotImplementedError, match='last axis'):
            F.layer_norm(values, (4, 6))


def test_powers_are_rounded_once():
    exponents = 2 * np.arange(64) / 128
    with localcontext() as context:
        context.prec = 40
        wanted = [float(Decimal(10000) ** Decimal(value)) for value in exponents.tolist()]
    assert np.array_equal(power(10000.0, exponents), np.float32(wanted))


def test_outside_of_the_context_torch_is_as_it_was():
    values = numbers(64).abs()
    before = values.sqrt()
    with SameBytes():
        values.sqrt()
    assert torch.equal(values.sqrt(), before)


def test_a_single_number_and_whole_numbers_give_what_torch_gives():
    for tensor in (torch.tensor(4.0), torch.arange(5) ** 2, torch.zeros(0)):
        with SameBytes():
            root = tensor.sqrt()
        assert root.dtype == torch.float32 and torch.equal(root, tensor.sqrt())
