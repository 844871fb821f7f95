"""BEVFusion of cameras and LiDAR."""

from mmdeploy_ext.spec.registry import FILM, register_family
from mmdeploy_ext.systems.bevfusion.options import OPTIONS

register_family(
    'bevfusion_det',
    'mmdeploy_ext.systems.bevfusion.family:BEVFusionFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.systems.bevfusion.facts:BEVFusionFacts',
    runtime='mmdeploy_ext.systems.bevfusion.runtime.model',
    library='mmdet3d',
    claims=('BEVFusion',),
    exports='BEVFusion of cameras and LiDAR (docs/models-lidar.md)',
    similar_names=('TransFusion', 'BEVFusion', 'LSS'),
    of_config='the config decides grid and cameras',
    used_by={'': FILM},
)
