"""TensorRT as an engine of the test loop and the proof: which engine an ONNX file gets."""

import types

import numpy as np
import onnx
import pytest

from cpu_engine import CpuEngine, HostMemory
from mmdeploy_ext.base.errors import EngineError, ShapeError
from mmdeploy_ext.engines.tensorrt import engine as tensorrt_engine
from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
from mmdeploy_ext.engines.tensorrt.binding import Gpu, Session, find_gpu
from mmdeploy_ext.engines.tensorrt.engine import engine_beside
from mmdeploy_ext.engines.tensorrt.record import read_record
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from toy_engines import package, two_outputs


@pytest.fixture
def gpu(monkeypatch):
    """Say that a GPU of some architecture is there: what is built for it is real."""
    package()

    def place(architecture):
        monkeypatch.setattr(tensorrt_engine, 'find_gpu', lambda index=0: Gpu('a GPU', architecture))

    place(86)
    return place


@pytest.fixture
def net(tmp_path):
    onnx.save_model(two_outputs(batch='B'), tmp_path / 'm.onnx')
    return str(tmp_path / 'm.onnx')


def beside(net):
    return engine_beside(net, 0, ['B=1/2/4'], ())


def test_an_onnx_file_gets_an_engine_for_this_gpu_once(gpu, net, tmp_path):
    first = beside(net)
    assert first.name == 'm.sm86.engine' and read_record(first).architectures == (86,)
    changed = first.stat().st_mtime_ns
    assert beside(net) == first and first.stat().st_mtime_ns == changed
    gpu(89)
    assert beside(net).name == 'm.sm89.engine'
    assert sorted(path.name for path in tmp_path.glob('*.engine')) == ['m.sm86.engine', 'm.sm89.engine']


@pytest.mark.skipif(find_gpu() is not None, reason='skipped: says what happens without a GPU')
def test_without_a_gpu_an_onnx_file_is_refused_before_it_is_read():
    package()
    with pytest.raises(EngineError, match=r'GPU 0.*GPU'):
        TensorRtBackend('').activate()


def backend_with(constants):
    """Return an active backend of `two_outputs`, played by numpy, to whose contract a constant belongs."""
    backend = TensorRtBackend('m.engine')
    frame = TensorSpec('frame', 'int64', (2,), default=0)
    x = TensorSpec('x', 'float32', ('B', 3))
    outputs = tuple(TensorSpec(name, 'float32', ('B', 3)) for name in ('sum', 'product'))
    backend.spec = GraphSpec('toy', (x, frame), outputs)
    backend.record = types.SimpleNamespace(constants=constants)
    backend.session = Session(CpuEngine(), HostMemory())
    return backend


@pytest.mark.parametrize(
    ('constants', 'good', 'bad'),
    [(('frame=480,640',), [480, 640], [640, 480]), (('frame',), [0, 0], [480, 640])],
)
def test_an_input_that_became_a_constant_takes_no_other_value(constants, good, bad):
    backend, x = backend_with(constants), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(backend.infer(dict(x=x))['sum'], x + 2)
    np.testing.assert_array_equal(backend.infer(dict(x=x, frame=np.array(good)))['product'], x * 2)
    with pytest.raises(ShapeError, match=rf"'frame'.*m.engine.*{good[0]}.*--constant frame={bad[0]}"):
        backend.infer(dict(x=x, frame=np.array(bad)))
