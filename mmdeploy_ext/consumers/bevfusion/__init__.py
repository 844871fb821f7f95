"""Programs that load BEVFusion's files."""

from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevfusion_det',
    'autoware',
    'mmdeploy_ext.consumers.autoware.bevfusion_export:BEVFusionFiles',
    'mmdeploy_ext.consumers.autoware.bevfusion:AutowareBEVFusion',
    help="the file that Autoware's bevfusion loads, of models of LiDAR alone",
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.consumers.autoware.check',
)
register_contract(
    'bevfusion_det',
    'cuda-bevfusion',
    'mmdeploy_ext.consumers.cuda_bevfusion.export:CudaFiles',
    'mmdeploy_ext.consumers.cuda_bevfusion.loop:CudaBEVFusion',
    help="the files that NVIDIA's CUDA-BEVFusion loads, by its names and shapes",
    fixes=dict(opset=13, exporter='torchscript', precision='fp32'),
    checks='mmdeploy_ext.consumers.cuda_bevfusion.folder',
    tables='mmdeploy_ext.consumers.cuda_bevfusion.pooling',
)
