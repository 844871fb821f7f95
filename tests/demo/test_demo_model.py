"""The exported model in the repository is what the current code exports."""

import onnx

from mmdeploy_ext.graphs.signature import differences
from mmdeploy_ext.spec.metadata import read_metadata
from toy_atss import SHIPPED, export_toy, load_toy


def test_the_demo_model_is_what_the_current_code_exports_but_for_versions(tmp_path):
    path = export_toy(load_toy(), tmp_path / 'fresh.onnx')
    assert not differences(onnx.load(SHIPPED), onnx.load(path)), (
        'export it again: python tools/deployment/pytorch2onnx.py configs/demo/atss_toy.py '
        'demo/checkpoints/atss_toy.pth --out demo/atss_toy.onnx --dynamic-export --verify'
    )
    fresh, shipped = (read_metadata(str(one)).to_props() for one in (path, SHIPPED))
    for props in (fresh, shipped):
        props.pop('mm2onnx.versions')
    assert shipped == fresh
