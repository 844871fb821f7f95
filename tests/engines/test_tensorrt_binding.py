"""Tensors of an engine are bound by name. There is no GPU here: `CpuEngine` stands for the engine alone."""

import itertools
import json
import types

import numpy as np
import pytest

from mmdeploy_ext.core.errors import EngineError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.engines.tensorrt.binding import Port, Session, check_ports, read_ports
from mmdeploy_ext.engines.tensorrt.build import Built, Layer, build
from mmdeploy_ext.engines.tensorrt.package import Package
from mmdeploy_ext.engines.tensorrt.record import AS_GIVEN, Record
from mmdeploy_ext.proving.tensorrt import compare_outputs, row_text
from toy_engines import CpuEngine, HostMemory

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
    assert not memory.held


def test_renamed_and_missing_outputs_are_refused_by_name():
    renamed = read_ports(CpuEngine(names={'sum': 'total'}))[1]
    with pytest.raises(ModelFileError, match=r'm\.engine.*\(sum.*unknown\)'):
        check_ports(renamed, STATED, 'outputs', 'm.engine')
    with pytest.raises(ModelFileError, match='product missing, none unknown'):
        check_ports(STATED[:1], STATED, 'outputs', 'm.engine')
    check_ports(STATED[::-1], STATED, 'outputs', 'm.engine')


def test_another_dtype_or_rank_is_refused():
    for port in (Port('sum', 'float16', (-1, 3)), Port('sum', 'float32', (2,))):
        with pytest.raises(ModelFileError, match="'sum' of the engine is"):
            check_ports([port, STATED[1]], STATED, 'outputs', 'm.engine')


@pytest.mark.parametrize(
    ('feeds', 'message'),
    [
        ({}, "input 'x' is missing"),
        ({'x': X.astype(np.float64)}, "'x': got float64, expected float32"),
        ({'x': np.zeros((5, 3), np.float32)}, 'got shape 5x3, which is outside of the sizes'),
    ],
)
def test_feeds_that_the_engine_does_not_take(feeds, message):
    memory = HostMemory()
    with pytest.raises(ShapeError, match=message):
        Session(CpuEngine(), memory).run(feeds)
    assert not memory.held


def test_an_output_whose_size_depends_on_data_is_refused(monkeypatch):
    engine = CpuEngine()
    monkeypatch.setattr(engine, 'get_tensor_shape', lambda name: (-1, 3))
    with pytest.raises(InferenceError, match='its size depends on the data'):
        Session(engine, HostMemory()).run({'x': X})


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


def test_a_line_of_the_proof_says_why_an_output_failed_that_should_be_zero():
    zeros = np.zeros_like(X)
    (right,), (wrong,) = (compare_outputs({'y': zeros}, {'y': got}, half=False) for got in (zeros, X))
    assert row_text(right).endswith(': ok') and row_text(wrong) == f'y: FAILED: {wrong.reason}'


def test_the_proof_passes_rounding():
    assert all(row.passed for row in compare_outputs({'y': X}, {'y': X * np.float32(1 + 1e-6)}, half=False))
    half = X.astype(np.float16).astype(np.float32) + np.float32(1e-3)
    assert all(row.passed for row in compare_outputs({'y': X}, {'y': half}, half=True))
    assert not all(row.passed for row in compare_outputs({'y': X}, {'y': X + np.float32(0.01)}, half=False))


NO_SHAPE = dict(name='x', dtype='float32', shape=None)


@pytest.mark.parametrize('ports', [[['a', 'float32', [1]]], ['x'], 'abc', [None], [NO_SHAPE]])
def test_a_record_with_damaged_ports_is_named(ports):
    built = ('tensorrt-rtx', '1', (86,), '', 0, 'm.onnx', '', AS_GIVEN, (), ())
    record = Record(*built, STATED, STATED, {}, {}, {}, False)
    assert Record.from_json(record.to_json()) == record
    with pytest.raises(ModelFileError, match=r'^m\.json'):
        Record.from_json({**record.to_json(), 'inputs': ports}, 'm.json')
    with pytest.raises(ModelFileError, match=r'^m\.json'):
        Record.from_json({**record.to_json(), 'nbytes': 'all'}, 'm.json')


def test_a_scalar_is_fed_without_an_axis(monkeypatch):
    engine, shapes = CpuEngine(['x']), []
    monkeypatch.setattr(engine, 'set_input_shape', lambda name, shape: shapes.append(shape))
    with pytest.raises(ShapeError, match='outside of the sizes'):
        Session(engine, HostMemory()).run({'x': np.array(1, np.float32)})
    assert shapes == [()]


@pytest.mark.parametrize('content', [['abc'], {'format': 1, 'inputs': ['x']}, {'format': 99}])
def test_a_damaged_record_is_refused(content):
    with pytest.raises(ModelFileError, match=r'm\.engine\.json: is .*again'):
        Record.from_json(content, 'm.engine.json')


def test_layers_are_plain_json():
    rows = Built(b'', (Layer('conv', 'CONVOLUTION', ('float32',)),), (), 0.0).layers_json()
    assert rows == json.loads(json.dumps(rows))


def test_a_library_that_does_not_start_is_named():
    class ILogger:
        pass

    def start(log):
        log.log(types.SimpleNamespace(name='ERROR'), 'CUDA driver is missing')
        raise TypeError('pybind11::init(): factory function returned nullptr')

    with pytest.raises(EngineError, match='tensorrt could not start: CUDA driver is missing'):
        build(None, Package('tensorrt', types.SimpleNamespace(ILogger=ILogger, Builder=start)))
