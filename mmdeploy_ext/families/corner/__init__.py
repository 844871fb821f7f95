"""CornerNet and CentripetalNet: their family and graph; mmdet's own detector and heads are used."""

from mmdeploy_ext.contract.registry import register_family

register_family(
    'corner',
    'mmdeploy_ext.families.corner.family:CornerFamily',
    facts='mmdeploy_ext.families.corner.facts:CornerFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('CornerNet',),
    exports='CornerNet and CentripetalNet (docs/models-2d.md)',
    similar_names=('CornerNet', 'CornerHead', 'CentripetalHead'),
)
