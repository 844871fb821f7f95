"""RT-DETR at full size: both models, forms, layouts and opsets through the whole ladder, on both engines."""

import pytest

import rtdetr_golden as golden
import toy_rtdetr
from mmdeploy_ext.preprocess import read_image
from mmdeploy_ext.verify.ladder import prove

pytestmark = pytest.mark.matrix


@pytest.fixture(scope='module', params=['r18vd', 'r50vd'])
def deployment(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return toy_rtdetr.load_toy(folder, config=golden.config_of(request.param))


@pytest.mark.parametrize('engine', ['OnnxRuntimeBackend', 'OpenVinoBackend'])
@pytest.mark.parametrize(('form', 'opset', 'dynamic'), [
    ('raw', 16, True), ('raw', 17, False), ('full', 18, True)])
def test_the_graph_is_proven(deployment, tmp_path, engine, form, opset, dynamic):
    path = toy_rtdetr.export_toy(
        deployment, tmp_path / 'x.onnx', form=form, opset=opset, dynamic=dynamic, height=640, width=640)
    verdict, _ = prove(deployment, path, [('toy', read_image(toy_rtdetr.PICTURE))], engine)
    assert verdict.proven, verdict.reasons
