"""CornerNet and CentripetalNet: family and graph for mmdet's own detector and heads."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'corner',
    'mmdeploy_ext.families.corner.family:CornerFamily',
    facts='mmdeploy_ext.families.corner.facts:CornerFacts',
    runtime='mmdeploy_ext.families.common.runtime.padded_results',
    claims=('CornerNet',),
    exports='CornerNet and CentripetalNet (docs/models-2d.md)',
    similar_names=('CornerNet', 'CornerHead', 'CentripetalHead'),
)
