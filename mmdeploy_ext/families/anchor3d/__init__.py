"""mmdet3d's one-stage LiDAR detectors with anchors: PointPillars, SECOND."""

from mmdeploy_ext.families.common.options import LIDAR_OPTIONS
from mmdeploy_ext.spec.registry import FILM, SWEEP, register_family

register_family(
    'anchor3d',
    'mmdeploy_ext.families.anchor3d.family:AnchorFamily',
    options=LIDAR_OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.runtime:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.runtime',
    library='mmdet3d',
    claims=('VoxelNet', 'MVXFasterRCNN', 'SASSD', 'DynamicVoxelNet'),
    exports='PointPillars, SECOND and SSN with Anchor3DHead (docs/models-lidar.md)',
    similar_names=(
        'Anchor3DHead',
        'FreeAnchor3DHead',
        'VoxelNet',
        'MVX',
        'PointPillars',
        'PartAggregationROIHead',
        'PointRCNNRoIHead',
        'SSD3DHead',
        'VoteHead',
        'H3DRoIHead',
        'SASSD',
    ),
    of_config='the config decides the grid',
    used_by={'': SWEEP},
)
register_family(
    'mvxnet',
    'mmdeploy_ext.families.anchor3d.mvxnet.family:MvxNetFamily',
    options=LIDAR_OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.runtime:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.mvxnet.runtime',
    library='mmdet3d',
    claims=('DynamicMVXFasterRCNN',),
    exports='MVX-Net with PointFusion (docs/models-lidar.md)',
    similar_names=('MVX', 'PointFusion', 'VoteFusion'),
    of_config='the config decides grid and image size',
    used_by={'': FILM},
)
