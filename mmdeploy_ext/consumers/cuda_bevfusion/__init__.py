from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'bevfusion_det',
    'cuda-bevfusion',
    f'{__name__}.export:CudaFiles',
    f'{__name__}.loop:CudaBEVFusion',
    help="the files that NVIDIA's CUDA-BEVFusion loads, by its names and shapes",
    fixes=dict(opset=13, exporter='torchscript', precision='fp32'),
)
