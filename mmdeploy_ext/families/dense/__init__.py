"""Dense one-stage heads: family, graphs and runtime for mmdet's own detectors."""

from mmdeploy_ext.spec.options import MAX_CANDIDATES, NMS_PLUGIN
from mmdeploy_ext.spec.registry import register_family

register_family(
    'dense',
    'mmdeploy_ext.families.dense.family:DenseFamily',
    options=(MAX_CANDIDATES, NMS_PLUGIN),
    facts='mmdeploy_ext.runtime.dense_facts:DenseFacts',
    runtime='mmdeploy_ext.families.dense.runtime',
    claims=('BaseDenseHead',),
    exports='one-stage detectors with a dense bbox_head (docs/models-2d.md)',
    similar_names=('ATSS', 'GFL', 'Retina', 'FCOS', 'PAA', 'VFNet', 'Anchor', 'YOLO', 'SSD', 'RTMDet'),
)
