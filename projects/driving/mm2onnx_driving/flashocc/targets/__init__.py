"""Programs that load FlashOcc's files."""

from mmdeploy_ext.spec.registry import register_contract

for name, outputs in (('trt-plugin', 'logits'), ('trt-argmax', 'classes')):
    register_contract(
        'flashocc',
        name,
        'mm2onnx_driving.flashocc.family:PooledFiles',
        'mm2onnx_driving.flashocc.runtime:PooledOnnx',
        help=f"the graph of {outputs} of FlashOcc's own TensorRT converter, with its plug-in; the "
        'intervals of the camera rig are inputs',
        fixes=dict(precision='fp32'),
    )
