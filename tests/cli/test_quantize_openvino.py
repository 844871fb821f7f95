"""quantize.py --engine openvino: NNCF's Q/DQ file of the trained toy, evaluated in OpenVINO."""

import dataclasses

import onnx
import pytest

from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli.quantize_app import main
from mmdeploy_ext.exporting.int8.dense import is_quantised
from mmdeploy_ext.spec.metadata import read_metadata
from toy_atss import REPO

DEMO = REPO / 'demo/atss_toy.onnx'
HOW = 'needs NNCF and OpenVINO: pip install openvino nncf -c requirements/lock.txt -c requirements/torch.txt'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco

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
