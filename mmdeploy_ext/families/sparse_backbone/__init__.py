"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'sparse_backbone',
    'mmdeploy_ext.families.sparse_backbone.family:SPARSE_ENCODER',
    library='mmdet3d',
    exports="mmdet3d's SparseEncoder as (pts_)middle_encoder: SECOND, CenterPoint (docs/models-lidar.md)",
    similar_names=('PointPillars', 'VoxelNet', 'UNet', 'MVX', 'Sparse'),
    used_by={'portable': 'benchmark {config} {checkpoint} --onnx {file}', '': 'graph show {file}'},
)
