"""RTMDet-Ins, CondInst and BoxInst of mmdet 3: family and graph."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'instance',
    'mmdeploy_ext.families.instance.family:InstanceFamily',
    facts='mmdeploy_ext.families.instance.facts:InstanceFacts',
    runtime='mmdeploy_ext.families.common.runtime.padded_instances',
    claims=('InstanceMaskDetector',),
    exports='RTMDet-Ins, CondInst and BoxInst of mmdet 3 (docs/mmdet3.md)',
    similar_names=('RTMDetIns', 'CondInst', 'BoxInst'),
)
