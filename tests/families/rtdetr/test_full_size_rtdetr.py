"""RT-DETR R18vd, exported at 640x640, gives at 480x640 what the original repository gave.

The whole ladder runs in tests/families/rtdetr/test_rtdetr_matrix.py.
"""

import dataclasses

import numpy as np
import pytest

import rtdetr_golden as golden
import toy_rtdetr
from mmdeploy_ext.engines import build_backend
from proofs import check_files
from verdicts import checks_of, graphs_of


@pytest.fixture(scope='module')
def r18(tmp_path_factory):
    folder = tmp_path_factory.mktemp('r18vd')
    deployment = toy_rtdetr.load_toy(folder, config=golden.config_of('r18vd'))
    path = toy_rtdetr.export_toy(deployment, folder / 'raw.onnx', form='raw', height=640, width=640)
    return deployment, path


@pytest.mark.matrix
def test_the_graph_at_another_size_is_the_original(r18):
    golden.require_golden()
    _, path = r18
    image = golden.golden_image('r18vd', 'b').numpy()
    with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
        outputs = backend.infer({'images': image})
    differences = golden.compare_queries('r18vd', 'b', outputs)
    print('\n', differences)


@pytest.mark.matrix
def test_the_graph_is_that_of_a_fresh_export(r18):
    deployment, path = r18
    other = dataclasses.replace(deployment)
    verdict = check_files(other, path, [('picture', np.zeros((64, 64, 3), np.uint8))])
    assert [check for check in (*graphs_of(verdict), *checks_of(verdict)) if not check.passed] == []
