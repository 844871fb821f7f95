from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevdet',
    'trt-plugin',
    f'{__name__}.export:PoolFiles',
    f'{__name__}.loop:PoolOnnx',
    help="the graph of BEVDet's own TensorRT converter, with the intervals of a rig and its plug-in",
    fixes=dict(precision='fp32'),
)
register_contract(
    'bevdet',
    'bevdet-cpp',
    f'{__name__}.cpp_export:CppFiles',
    f'{__name__}.cpp_loop:CppOnnx',
    help='the one file of bevdet-tensorrt-cpp (branch one) and bevdet_vendor, of BEVDepth4D, with their '
    'plug-ins',
    fixes=dict(precision='fp32'),
)
