"""Engines of TensorRT: the record beside one, and what is refused by it."""

import hashlib

import onnx
import pytest

from mmdeploy_ext.base.errors import EngineError, ModelFileError
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.cli import tensorrt_app
from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
from mmdeploy_ext.engines.tensorrt.record import (
    Record,
    check_architecture,
    check_source,
    check_version,
    read_record,
    write_engine,
)
from toy_engines import two_outputs


@pytest.fixture
def engine(tmp_path):
    """Return a file that is no engine, beside the ONNX file that its record names: no package is needed."""
    onnx.save_model(two_outputs(), tmp_path / 'm.onnx')
    record = Record(
        *('tensorrt-rtx', '1.2.0', (86, 89), hashlib.sha256(b'engine').hexdigest(), 6, 'm.onnx'),
        *(sha256_onnx(tmp_path / 'm.onnx'), 'as given', (), (), (), (), {}, {}, {}, False),
    )
    write_engine(tmp_path / 'm.engine', b'engine', record)
    return tmp_path / 'm.engine'


def test_an_engine_beside_a_newer_onnx_file_is_refused(engine):
    check_source(read_record(engine), engine)
    model, source = two_outputs(), engine.with_suffix('.onnx')
    model.graph.node[0].op_type = 'Sub'
    onnx.save_model(model, source)
    with pytest.raises(ModelFileError, match=r'm\.engine: was built from another m\.onnx'):
        TensorRtBackend(str(engine)).activate()
    assert tensorrt_app.main([str(engine)]) == 2
    source.unlink()
    check_source(read_record(engine), engine)


def test_an_engine_of_another_version_is_refused(engine):
    record = read_record(engine)
    check_version(record, 'tensorrt-rtx', '1.2.0', engine)
    for name, version in (('tensorrt-rtx', '9.9.9'), ('tensorrt', '1.2.0')):
        with pytest.raises(EngineError, match=rf'but {name} {version} is installed'):
            check_version(record, name, version, engine)


def test_an_engine_of_another_architecture_is_refused(engine):
    record = read_record(engine)
    check_architecture(record, 89, 'a GPU', engine)
    with pytest.raises(EngineError, match=r'SM 86.*SM 89.*an RTX 5090.*SM 120.*--sm 120'):
        check_architecture(record, 120, 'an RTX 5090', engine)
    with pytest.raises(EngineError, match=r'H200.*SM 90.*with tensorrt on that GPU'):
        check_architecture(record, 90, 'an H200', engine)
