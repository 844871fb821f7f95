from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevdet',
    'trt-plugin',
    f'{__name__}.export:PoolFiles',
    f'{__name__}.loop:PoolOnnx',
    help="the graph of BEVDet's own TensorRT converter, with the intervals of a rig and its plug-in",
    fixes=dict(precision='fp32'),
)
