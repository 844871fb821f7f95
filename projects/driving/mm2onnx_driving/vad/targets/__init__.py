"""Programs that load VAD's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'vad',
    'autoware',
    'mm2onnx_driving.vad.autoware:VadFiles',
    'mm2onnx_driving.vad.runtime:AutowareVad',
    help="the three files that Autoware's tensorrt_vad loads, of plain operators",
    fixes=dict(precision='fp32'),
    checks='mm2onnx_driving.autoware.check',
)
