"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from mmdeploy_ext.contract.registry import register_family

register_family('bevfusion', 'mmdeploy_ext.families.sparse_backbone.family:BEVFUSION', library='mmdet3d')
register_family(
    'centerpoint-det3d',
    'mmdeploy_ext.families.sparse_backbone.family:CENTERPOINT',
    library='mmdet3d',
)
register_family(
    'sparse-encoder', 'mmdeploy_ext.families.sparse_backbone.family:SPARSE_ENCODER', library='mmdet3d'
)
