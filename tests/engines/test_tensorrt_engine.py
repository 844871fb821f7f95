"""Engines built without a GPU by the real tensorrt-rtx: records, dtypes, what is refused when."""

import hashlib
import json
import shutil

import onnx
import pytest

from mmdeploy_ext.cli import tensorrt_app
from mmdeploy_ext.core.errors import EngineError, ModelFileError
from mmdeploy_ext.core.files import sha256_onnx
from mmdeploy_ext.engines.tensorrt import engine as tensorrt_engine
from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
from mmdeploy_ext.engines.tensorrt.cuda import GpuMemory, find_gpu
from mmdeploy_ext.engines.tensorrt.record import (
    Record,
    check_architecture,
    check_source,
    check_version,
    read_record,
    record_path,
    write_engine,
)
from toy_engines import package, two_outputs

needs_no_gpu = pytest.mark.skipif(find_gpu() is not None, reason='skipped: says what happens without a GPU')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    package()
    folder = tmp_path_factory.mktemp('engine')
    onnx.save_model(two_outputs(batch='B'), folder / 'm.onnx')
    job = tensorrt_engine.prepare(folder / 'm.onnx', shapes=['B=1/2/4'], architectures=[86, 89])
    tensorrt_engine.build_file(job, folder / 'm.engine')
    return folder


@pytest.fixture
def engine(built, tmp_path):
    for name in ('m.engine', 'm.engine.json'):
        shutil.copy(built / name, tmp_path / name)
    return tmp_path / 'm.engine'


def test_float16_is_written_into_the_graph_and_found_in_the_layers(built):
    half = tensorrt_engine.prepare(
        built / 'm.onnx', fp16=True, shapes=['B=2'], architectures=[86], keep_fp32=['mul']
    )
    layers = {
        layer.name: layer.outputs
        for layer in tensorrt_engine.build(half.model, half.package, [86], half.profiles).layers
    }
    assert layers['add'] == ('float16',)
    assert layers['mul'] == ('float32',)
    assert {port.elem_type for port in (value.type.tensor_type for value in half.model.graph.input)} == {1}


def test_an_engine_without_its_record_is_refused_with_what_its_header_says(engine):
    record_path(engine).unlink()
    with pytest.raises(ModelFileError, match=r'm\.engine\.json.*\(tensorrt-rtx.*SM 86.*SM 89\)'):
        read_record(engine)
    engine.write_bytes(engine.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match='SM 89'):
        read_record(engine)


def test_an_engine_beside_a_newer_onnx_file_is_refused(tmp_path):
    """Without the package: the record and the file beside the engine are compared before it is asked for."""
    engine, source = tmp_path / 'm.engine', tmp_path / 'm.onnx'
    onnx.save_model(two_outputs(), source)
    record = Record(
        *('tensorrt', '10.9.0', (86,), hashlib.sha256(b'engine').hexdigest(), 6, 'm.onnx'),
        *(sha256_onnx(source), 'as given', (), (), (), (), {}, {}, {}, False),
    )
    write_engine(engine, b'engine', record)
    check_source(read_record(engine), engine)
    model = two_outputs()
    model.graph.node[0].op_type = 'Sub'
    onnx.save_model(model, source)
    with pytest.raises(
        ModelFileError, match=r'm\.engine: was built from another m\.onnx than the one beside'
    ):
        TensorRtBackend(str(engine)).activate()
    assert tensorrt_app.main([str(engine)]) == 2
    source.unlink()
    check_source(read_record(engine), engine)


def test_an_engine_of_another_version_is_refused(engine):
    record = read_record(engine)
    check_version(record, record.package, record.version, engine)
    with pytest.raises(EngineError, match=r'was built by tensorrt-rtx .*, here is tensorrt-rtx 9\.9\.9'):
        check_version(record, 'tensorrt-rtx', '9.9.9', engine)
    content = json.loads(record_path(engine).read_text())
    record_path(engine).write_text(json.dumps({**content, 'version': '1.0.0.1'}))
    with pytest.raises(EngineError, match=r'1\.0\.0\.1'):
        TensorRtBackend(str(engine)).activate()


def test_an_engine_of_another_architecture_is_refused(engine):
    record = read_record(engine)
    check_architecture(record, 89, 'a GPU', engine)
    with pytest.raises(EngineError, match=r'SM 86.*SM 89.*an RTX 5090.*SM 120.*--sm 120'):
        check_architecture(record, 120, 'an RTX 5090', engine)
    with pytest.raises(EngineError, match=r'H200.*SM 90.*with tensorrt on that GPU'):
        check_architecture(record, 90, 'an H200', engine)


@needs_no_gpu
def test_without_a_gpu_nothing_runs(engine):
    with pytest.raises(EngineError, match='GPU 0'):
        TensorRtBackend(str(engine)).activate()
    with pytest.raises(EngineError, match='GPU 0'):
        GpuMemory()
