"""Programs that load BEVFormer's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'bevformer',
    'autoware',
    'mm2onnx_driving.bevformer.autoware:BevFormerFiles',
    'mm2onnx_driving.bevformer.runtime:AutowareBevFormer',
    help="the file that Autoware's tensorrt_bevformer loads, with plain operators",
    fixes=dict(precision='fp32'),
    checks='mm2onnx_driving.autoware.check',
)
register_contract(
    'bevformer',
    'trt-plugin',
    'mm2onnx_driving.bevformer.plugins_export:PluginFiles',
    'mm2onnx_driving.bevformer.runtime:PluginOnnx',
    help="the graph of BEVFormer's TensorRT deployments, with their plug-ins",
    fixes=dict(precision='fp32', grid_sample='operator'),
)
