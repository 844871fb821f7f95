from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevformer',
    'trt-plugin',
    f'{__name__}.export:PluginFiles',
    f'{__name__}.loop:PluginOnnx',
    help='the graph that TensorRT deployments of BEVFormer load, with their plug-ins',
    fixes=dict(precision='fp32', grid_sample='operator'),
)
