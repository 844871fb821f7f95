"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from mmdeploy_ext.contract.registry import register_family

USED_BY = {'portable': 'benchmark {config} {checkpoint} --onnx {file}', '': 'graph show {file}'}

register_family(
    'bevfusion',
    'mmdeploy_ext.families.sparse_backbone.family:BEVFUSION',
    library='mmdet3d',
    used_by=USED_BY,
)
register_family(
    'centerpoint-det3d',
    'mmdeploy_ext.families.sparse_backbone.family:CENTERPOINT',
    library='mmdet3d',
    used_by=USED_BY,
)
register_family(
    'sparse-encoder',
    'mmdeploy_ext.families.sparse_backbone.family:SPARSE_ENCODER',
    library='mmdet3d',
    exports="mmdet3d's SparseEncoder as (pts_)middle_encoder: SECOND, CenterPoint, VoxelNet (docs/lidar.md)",
    similar_names=('PointPillars', 'VoxelNet', 'UNet', 'MVX', 'Sparse'),
    used_by=USED_BY,
)
