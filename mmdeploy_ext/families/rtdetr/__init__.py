"""RT-DETR: family, graphs and runtime; the detector is in `mmdeploy_ext/upstream/models/rtdetr`."""

from mmdeploy_ext.families.rtdetr.facts import OPTIONS
from mmdeploy_ext.spec.registry import register_family

register_family(
    'rtdetr',
    'mmdeploy_ext.families.rtdetr.family:RtDetrFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.rtdetr.facts:RtDetrFacts',
    runtime='mmdeploy_ext.families.rtdetr.runtime',
    claims=('RTDETR',),
    exports='RTDETR, queries without suppression (docs/models-2d.md)',
    similar_names=('RTDETR', 'RTDetrV2', 'HybridEncoder'),
)
