"""NVIDIA's DL4AGX: PETR and PETRv2 in two graphs; the caller computes the position embedding."""

from mmdeploy_ext.contract.registry import register_contract

for family, loop in dict(petr='PetrBound', petrv2='petrv2_bound').items():
    register_contract(
        family,
        'dl4agx',
        f'{__name__}.export:Dl4agxFiles',
        f'{__name__}.loop:{loop}',
        help="the two graphs of NVIDIA's DL4AGX, whose caller computes the position embedding, and a third "
        'graph that does',
        fixes=dict(precision='fp32'),
    )
