"""mmdet3d's one-stage LiDAR detectors with anchors: PointPillars, SECOND."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.anchor3d.options import OPTIONS

register_family(
    'anchor3d',
    'mmdeploy_ext.families.anchor3d.family:AnchorFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.facts:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.runtime',
    library='mmdet3d',
    claims=('VoxelNet', 'MVXFasterRCNN', 'SASSD', 'DynamicVoxelNet'),
)
register_family(
    'mvxnet',
    'mmdeploy_ext.families.anchor3d.mvxnet.family:MvxNetFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.facts:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.mvxnet.runtime',
    library='mmdet3d',
    claims=('DynamicMVXFasterRCNN',),
)
