"""Programs that load BEVDet's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'bevdet',
    'autoware',
    'mm2onnx_driving.bevdet.plugins_export:BevDetFiles',
    'mm2onnx_driving.bevdet.plugins:CppOnnx',
    help="the file that Autoware's tensorrt_bevdet loads, for BEVDepth4D; the node passes no ego pose, so "
    'past views are not moved',
    fixes=dict(precision='fp32'),
    checks='mm2onnx_driving.autoware.check',
)
register_contract(
    'bevdet',
    'trt-plugin',
    'mm2onnx_driving.bevdet.plugins_export:PoolFiles',
    'mm2onnx_driving.bevdet.plugins:PoolOnnx',
    help="the graph of BEVDet's own TensorRT converter, with its plug-in; the intervals of the camera rig "
    'are inputs',
    fixes=dict(precision='fp32'),
)
register_contract(
    'bevdet',
    'bevdet-cpp',
    'mm2onnx_driving.bevdet.plugins_export:CppFiles',
    'mm2onnx_driving.bevdet.plugins:CppOnnx',
    help='the file of bevdet-tensorrt-cpp (branch one) and bevdet_vendor, for BEVDepth4D, with plug-ins',
    fixes=dict(precision='fp32'),
)
