"""Programs that load BEVFusion's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'bevfusion_det',
    'autoware',
    'mm2onnx_driving.bevfusion.autoware_export:BEVFusionFiles',
    'mm2onnx_driving.bevfusion.autoware:AutowareBEVFusion',
    help="the file that Autoware's bevfusion loads, for LiDAR-only models",
    fixes=dict(precision='fp32'),
    checks='mm2onnx_driving.autoware.check',
)
register_contract(
    'bevfusion_det',
    'cuda-bevfusion',
    'mm2onnx_driving.bevfusion.cuda_export:CudaFiles',
    'mm2onnx_driving.bevfusion.cuda_loop:CudaBEVFusion',
    help="the files that NVIDIA's CUDA-BEVFusion loads, with its names and shapes",
    fixes=dict(opset=13, exporter='torchscript', precision='fp32'),
    checks='mm2onnx_driving.bevfusion.cuda_folder',
    tables='mm2onnx_driving.bevfusion.cuda_loop',
)
