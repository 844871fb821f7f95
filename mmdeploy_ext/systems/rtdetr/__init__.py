"""RT-DETR: family, graphs and runtime; the detector is in `mmdeploy_ext/models/rtdetr`."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.systems.rtdetr.options import OPTIONS

register_family(
    'rtdetr',
    'mmdeploy_ext.systems.rtdetr.family:RtDetrFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.systems.rtdetr.facts:RtDetrFacts',
    runtime='mmdeploy_ext.systems.rtdetr.runtime',
    claims=('RTDETR',),
    exports='RTDETR, queries without suppression (docs/models-2d.md)',
    similar_names=('RTDETR', 'RTDetrV2', 'HybridEncoder'),
)
