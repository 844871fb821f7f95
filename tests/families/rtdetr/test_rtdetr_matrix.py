"""RT-DETR at 640x640: both models, forms, batches, opsets and variants through the whole ladder."""

import pytest

import rtdetr_golden as golden
import toy_rtdetr
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from verdicts import cases_of

pytestmark = pytest.mark.matrix

SIZE = dict(height=640, width=640)
FIXED, TWO = dict(dynamic=False), dict(dynamic=False, batch=2)
CELLS = {
    'full opset 16 fixed': dict(form='full', opset=16, **FIXED),
    'full opset 17 batch 2': dict(form='full', opset=17, **TWO),
    'full opset 18 dynamic': dict(form='full', opset=18),
    'full opset 17 dynamic batch': dict(form='full', opset=17, dynamic=False, dynamic_batch=True),
    'full opset 17 gather': dict(form='full', opset=17, grid_sample='gather', **FIXED),
    'raw opset 16 dynamic': dict(form='raw', opset=16),
    'raw opset 17 fixed': dict(form='raw', opset=17, **FIXED),
    'raw opset 19 batch 2': dict(form='raw', opset=19, **TWO),
    'raw opset 20 fixed': dict(form='raw', opset=20, **FIXED),
    'raw opset 17 branches': dict(form='raw', opset=17, fuse=False, **FIXED),
    'raw opset 17 gather batch 2': dict(form='raw', opset=17, grid_sample='gather', **TWO),
    'raw opset 17 simplified': dict(form='raw', opset=17, simplify=True, **FIXED),
}


@pytest.fixture(scope='module', params=['r18vd', 'r50vd'])
def deployment(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return toy_rtdetr.load_toy(folder, config=golden.config_of(request.param))


@pytest.fixture(scope='module', params=CELLS)
def exported(request, deployment, tmp_path_factory):
    path = tmp_path_factory.mktemp('cell') / 'x.onnx'
    toy_rtdetr.export_toy(deployment, path, **SIZE, **CELLS[request.param])
    yield str(path)
    path.unlink()


@pytest.mark.parametrize('engine', ['OnnxRuntimeBackend', 'OpenVinoBackend'])
def test_the_graph_is_proven(deployment, exported, engine):
    if engine == 'OpenVinoBackend':
        pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    verdict, _ = prove(deployment, exported, [('toy', read_image(toy_rtdetr.PICTURE))], dict(engine=engine))
    rows = [row for case in cases_of(verdict) for row in case.tensors]
    worst = max((row.max_rel or 0.0 for row in rows), default=0.0)
    print(f'{"proven" if verdict.proven else verdict.failures}, {len(cases_of(verdict))} inputs, {worst:.1e}')
    assert verdict.proven, verdict.failures
