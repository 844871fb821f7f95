"""The exported model in the repository is what the current code exports."""

import onnx

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.graph.passes.rename import apply_spec
from mmdeploy_ext.graph.signature import differences
from toy_atss import REPO, export_toy, load_toy

SHIPPED = REPO / 'demo/atss_toy.onnx'


def test_demo_model_is_what_the_current_code_exports(tmp_path):
    fresh = onnx.load(export_toy(load_toy(), tmp_path / 'fresh.onnx'))
    shipped = onnx.load(SHIPPED)
    assert not differences(shipped, fresh), (
        'export it again: python tools/deployment/pytorch2onnx.py configs/demo/atss_toy.py '
        'demo/checkpoints/atss_toy.pth --output-file demo/atss_toy.onnx --dynamic-export --verify'
    )


def test_demo_model_metadata_is_current_except_for_versions(tmp_path):
    fresh = read_metadata(export_toy(load_toy(), tmp_path / 'fresh.onnx')).to_props()
    shipped = read_metadata(str(SHIPPED)).to_props()
    for props in (fresh, shipped):
        props.pop('mm2onnx.versions')
    assert shipped == fresh


def test_demo_model_already_keeps_its_spec():
    model = onnx.load(SHIPPED)
    again = apply_spec(model, read_metadata(str(SHIPPED)).spec)
    assert [value.name for value in again.graph.input] == ['input', 'img_shape', 'scale_factor']
    assert [value.name for value in again.graph.output] == ['dets', 'labels']
