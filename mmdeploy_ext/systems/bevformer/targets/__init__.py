"""Programs that load BEVFormer's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'bevformer',
    'autoware',
    'mmdeploy_ext.systems.bevformer.targets.autoware_export:BevFormerFiles',
    'mmdeploy_ext.systems.bevformer.targets.autoware:AutowareBevFormer',
    help="the file that Autoware's tensorrt_bevformer loads, with plain operators",
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.targets.autoware.check',
)
register_contract(
    'bevformer',
    'trt-plugin',
    'mmdeploy_ext.systems.bevformer.targets.tensorrt_plugins.export:PluginFiles',
    'mmdeploy_ext.systems.bevformer.targets.tensorrt_plugins.loop:PluginOnnx',
    help="the graph of BEVFormer's TensorRT deployments, with their plug-ins",
    fixes=dict(precision='fp32', grid_sample='operator'),
)
