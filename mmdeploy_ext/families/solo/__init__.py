"""SOLO, Decoupled SOLO, SOLOv2: family, graphs and runtime for mmdet's detectors."""

from mmdeploy_ext.families.solo.facts import OPTIONS
from mmdeploy_ext.spec.registry import register_family

register_family(
    'solo',
    'mmdeploy_ext.families.solo.family:SoloFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.solo.facts:SoloFacts',
    runtime='mmdeploy_ext.families.solo.runtime',
    claims=('SOLOHead', 'DecoupledSOLOHead', 'DecoupledSOLOLightHead', 'SOLOV2Head'),
    exports='SOLO, Decoupled SOLO and SOLOv2 with their mask_head (docs/models-2d.md)',
    similar_names=('SOLO', 'MaskRCNN', 'MaskHead', 'CondInst', 'PointRend', 'Panoptic'),
)
