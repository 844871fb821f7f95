"""YOLACT: family and graph for mmdet's own detector and heads."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'yolact',
    'mmdeploy_ext.families.yolact.family:YolactFamily',
    facts='mmdeploy_ext.families.yolact.facts:YolactFacts',
    runtime='mmdeploy_ext.families.common.runtime.padded_instances',
    claims=('YOLACT',),
    exports='YOLACT (docs/models-2d.md)',
    similar_names=('YOLACT', 'Protonet'),
)
