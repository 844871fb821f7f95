"""Programs that load BEVFormer's files."""

from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevformer',
    'autoware',
    'mmdeploy_ext.consumers.autoware.bevformer_export:BevFormerFiles',
    'mmdeploy_ext.consumers.autoware.bevformer:AutowareBevFormer',
    help="the file that Autoware's tensorrt_bevformer loads, of plain operators",
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.consumers.autoware.check',
)
register_contract(
    'bevformer',
    'trt-plugin',
    'mmdeploy_ext.consumers.tensorrt_plugins.export:PluginFiles',
    'mmdeploy_ext.consumers.tensorrt_plugins.loop:PluginOnnx',
    help='the graph that TensorRT deployments of BEVFormer load, with their plug-ins',
    fixes=dict(precision='fp32', grid_sample='operator'),
)
