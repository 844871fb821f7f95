"""CenterPoint: mmdet3d's own LiDAR detector, exported as a sparse backbone and a dense head."""

from mmdeploy_ext.families.common.options import LIDAR_OPTIONS
from mmdeploy_ext.spec.registry import SWEEP, register_family

register_family(
    'centerpoint',
    'mmdeploy_ext.families.centerpoint.family:CenterPointFamily',
    options=LIDAR_OPTIONS,
    facts='mmdeploy_ext.families.centerpoint.runtime:CenterPointFacts',
    runtime='mmdeploy_ext.families.centerpoint.runtime',
    library='mmdet3d',
    claims=('CenterPoint',),
    exports='CenterPoint of points with CenterHead (docs/models-lidar.md)',
    similar_names=('CenterHead', 'Anchor3DHead', 'VoxelNet', 'MVX', 'PointPillars', 'TransFusion'),
    of_config='the config decides the grid',
    used_by={'': SWEEP},
)
