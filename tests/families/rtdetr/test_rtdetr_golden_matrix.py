"""RT-DETR with the goldens' weights gives what the original repository gave: R50vd, and a file of R18vd."""

import pytest

import rtdetr_golden as golden
import toy_rtdetr
from mmdeploy_ext.engines import build_backend

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize('case', ['a', 'b', 'b_rowmajor'])
def test_every_tensor_and_detection_is_the_originals(case):
    found = golden.run_model(golden.golden_model('r50vd', case), 'r50vd', case)
    golden.compare('r50vd', case, found)


def test_a_file_gives_the_originals_queries_at_another_size(tmp_path):
    deployment = toy_rtdetr.load_toy(tmp_path, config=golden.config_of('r18vd'))
    path = toy_rtdetr.export_toy(deployment, tmp_path / 'raw.onnx', form='raw', height=640, width=640)
    with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
        outputs = backend.infer({'images': golden.golden_image('r18vd', 'b').numpy()})
    golden.compare_queries('r18vd', 'b', outputs)
