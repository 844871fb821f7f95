"""Programs that load BEVFusion's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'bevfusion_det',
    'autoware',
    'mmdeploy_ext.systems.bevfusion.targets.autoware_export:BEVFusionFiles',
    'mmdeploy_ext.systems.bevfusion.targets.autoware:AutowareBEVFusion',
    help="the file that Autoware's bevfusion loads, for LiDAR-only models",
    fixes=dict(precision='fp32'),
    checks='mmdeploy_ext.targets.autoware.check',
)
register_contract(
    'bevfusion_det',
    'cuda-bevfusion',
    'mmdeploy_ext.systems.bevfusion.targets.cuda_bevfusion.export:CudaFiles',
    'mmdeploy_ext.systems.bevfusion.targets.cuda_bevfusion.loop:CudaBEVFusion',
    help="the files that NVIDIA's CUDA-BEVFusion loads, with its names and shapes",
    fixes=dict(opset=13, exporter='torchscript', precision='fp32'),
    checks='mmdeploy_ext.systems.bevfusion.targets.cuda_bevfusion.folder',
    tables='mmdeploy_ext.systems.bevfusion.targets.cuda_bevfusion.pooling',
)
