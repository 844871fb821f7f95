"""quantize.py --engine openvino: NNCF's Q/DQ file of the trained toy, evaluated in OpenVINO."""

import dataclasses

import numpy as np
import onnx
import pytest

from mmdeploy_ext.cli.quantize_app import main
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.quantize.dense_layers import is_quantised
from mmdeploy_ext.runtime.detect import make_feeds, prepare
from toy_atss import PICTURE, REPO

DEMO = REPO / 'demo/atss_toy.onnx'
SURE = 0.6
"""The float file's scores on the picture are 0.74, 0.69, then 0.47: this is in the gap."""
HOW = 'needs NNCF and OpenVINO: pip install openvino nncf -c requirements/lock.txt -c requirements/torch.txt'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.synthetic.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=32, val_images=1)
    return root


@pytest.fixture(scope='module')
def int8(data, tmp_path_factory):
    """The INT8 file and its report."""
    pytest.importorskip('openvino', reason=HOW)
    pytest.importorskip('nncf', reason=HOW)
    folder = tmp_path_factory.mktemp('int8')
    output, report = folder / 'atss_toy.int8.onnx', folder / 'report.json'
    files = ['--output', str(output), '--json', str(report)]
    arguments = [str(DEMO), '--calibrate', str(data / 'train2017'), '--engine', 'openvino', '--rounds', '1']
    assert main([*arguments, *files]) == 0
    return output, read_json(report)


def test_nncf_makes_a_file_that_says_so_with_heads_in_float_and_outputs_near(int8):
    output, report = int8
    assert report['quantiser'].startswith('NNCF 3.') and report['engine'] == 'openvino'
    assert report['size_ratio'] <= 0.30
    assert all(figures['cosine'] > 0.995 for figures in report['outputs'].values())
    model = onnx.load(output)
    metadata = dataclasses.replace(read_metadata(str(output)), edits=())
    assert is_quantised(model) and metadata == read_metadata(str(DEMO))
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    heads = [node for node in model.graph.node if '/atss_' in node.name and node.op_type == 'Conv']
    assert len(heads) == 15 and all(kept[node.input[1]].data_type == onnx.TensorProto.FLOAT for node in heads)


@pytest.mark.parametrize('engine', ['OpenVinoBackend', 'OnnxRuntimeBackend'])
def test_both_engines_find_in_the_file_what_they_find_in_the_float_file(int8, engine):
    metadata = read_metadata(str(DEMO))
    feeds = make_feeds(prepare(metadata, read_image(PICTURE)), metadata)
    feeds = {name: array for name, array in feeds.items() if name in metadata.spec.input_names}
    found = []
    for path in (DEMO, int8[0]):
        with build_backend(engine, str(path), threads=1) as backend:
            outputs = backend.infer(feeds)
        dets, labels = outputs['dets'][0], outputs['labels'][0]
        sure = dets[:, 4] > SURE
        order = np.argsort(dets[sure, 0])
        found.append((labels[sure][order], dets[sure][order, :4], dets[sure][order, 4]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=2)
    np.testing.assert_allclose(found[0][2], found[1][2], atol=0.03)
    assert len(found[0][0]) == 2, 'both shapes of the picture'
