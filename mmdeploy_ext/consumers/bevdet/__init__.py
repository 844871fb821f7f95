"""Programs that load BEVDet's files."""

from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevdet',
    'autoware',
    'mmdeploy_ext.consumers.autoware.bevdet_export:BevDetFiles',
    'mmdeploy_ext.consumers.bevdet_plugins.cpp_loop:CppOnnx',
    help="the file that Autoware's tensorrt_bevdet loads, of BEVDepth4D; the node feeds no ego pose, so that "
    'past views are not moved',
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.consumers.autoware.check',
)
register_contract(
    'bevdet',
    'trt-plugin',
    'mmdeploy_ext.consumers.bevdet_plugins.export:PoolFiles',
    'mmdeploy_ext.consumers.bevdet_plugins.loop:PoolOnnx',
    help="the graph of BEVDet's own TensorRT converter, with the intervals of a rig and its plug-in",
    fixes=dict(precision='fp32'),
)
register_contract(
    'bevdet',
    'bevdet-cpp',
    'mmdeploy_ext.consumers.bevdet_plugins.cpp_export:CppFiles',
    'mmdeploy_ext.consumers.bevdet_plugins.cpp_loop:CppOnnx',
    help='the one file of bevdet-tensorrt-cpp (branch one) and bevdet_vendor, of BEVDepth4D, with their '
    'plug-ins',
    fixes=dict(precision='fp32'),
)
