"""Programs that load PETR's files."""

from mmdeploy_ext.contract.registry import register_contract

for family, loop in dict(petr='PetrBound', petrv2='petrv2_bound').items():
    register_contract(
        family,
        'dl4agx',
        'mmdeploy_ext.consumers.dl4agx.export:Dl4agxFiles',
        f'mmdeploy_ext.consumers.dl4agx.loop:{loop}',
        help="the two graphs of NVIDIA's DL4AGX, whose caller computes the position embedding, and a third "
        'graph that does',
        fixes=dict(precision='fp32'),
    )
