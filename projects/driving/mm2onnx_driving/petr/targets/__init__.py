"""Programs that load PETR's files."""

from mmdeploy_ext.spec.registry import register_contract

for family, loop in dict(petr='PetrBound', petrv2='petrv2_bound').items():
    register_contract(
        family,
        'dl4agx',
        'mm2onnx_driving.petr.dl4agx:Dl4agxFiles',
        f'mm2onnx_driving.petr.runtime:{loop}',
        help="the two graphs of NVIDIA's DL4AGX and a third one for the position embedding, which the "
        'caller computes',
        fixes=dict(precision='fp32'),
    )
