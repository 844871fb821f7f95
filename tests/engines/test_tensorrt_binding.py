"""Tensors of an engine are bound by name. There is no GPU here: `CpuEngine` stands for the engine alone."""

import itertools

import numpy as np
import pytest

from cpu_engine import CpuEngine, HostMemory
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.cli.tensorrt_app import compare_outputs
from mmdeploy_ext.engines.tensorrt.binding import Port, Session, check_ports, read_ports

X = np.arange(6, dtype=np.float32).reshape(2, 3)
STATED = (Port('sum', 'float32', (-1, 3)), Port('product', 'float32', (-1, 3)))


@pytest.mark.parametrize('order', list(itertools.permutations(['x', 'sum', 'product'])))
def test_permuted_tensors_land_right(order):
    memory = HostMemory()
    session = Session(CpuEngine(order), memory)
    for x in (X, X[:1], np.vstack([X, X])):
        got = session.run({'x': x})
        np.testing.assert_array_equal(got['sum'], x + 2)
        np.testing.assert_array_equal(got['product'], x * 2)
    assert not memory.buffers


def test_renamed_and_missing_outputs_are_refused_by_name():
    renamed = read_ports(CpuEngine(names={'sum': 'total'}))[1]
    with pytest.raises(ModelFileError, match=r'm\.engine.*\(sum.*unknown\)'):
        check_ports(renamed, STATED, 'outputs', 'm.engine')
    with pytest.raises(ModelFileError, match='product missing, none unknown'):
        check_ports(STATED[:1], STATED, 'outputs', 'm.engine')
    check_ports(STATED[::-1], STATED, 'outputs', 'm.engine')


@pytest.mark.parametrize(
    'wrong',
    [
        {'y': X + 1},
        {'y': X[::-1].copy()},
        {'y': np.zeros_like(X)},
        {'y': X * np.float32(np.nan)},
        {},
        {'y': X, 'z': X},
        {'y': X[:1]},
    ],
)
@pytest.mark.parametrize('half', [False, True])
def test_the_proof_fails_on_every_planted_fault(wrong, half):
    assert not all(row.passed for row in compare_outputs({'y': X}, wrong, half=half))


def test_the_proof_passes_rounding():
    assert all(row.passed for row in compare_outputs({'y': X}, {'y': X * np.float32(1 + 1e-6)}, half=False))
    half = X.astype(np.float16).astype(np.float32) + np.float32(1e-3)
    assert all(row.passed for row in compare_outputs({'y': X}, {'y': half}, half=True))
    assert not all(row.passed for row in compare_outputs({'y': X}, {'y': X + np.float32(0.01)}, half=False))
