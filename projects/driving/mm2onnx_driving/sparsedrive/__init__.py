"""SparseDrive: boxes, lines, trajectories and a plan of six cameras, with a memory."""

from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'model': (
        'HierarchicalPlanningDecoder',
        'InstanceBank',
        'InstanceQueue',
        'MotionPlanningHead',
        'MotionPlanningRefinementModule',
        'MultiheadFlashAttention',
        'NuScenes3DDataset',
        'Sparse4DHead',
        'SparseBox3DDecoder',
        'SparseBox3DMotionDecoder',
        'SparseDrive',
        'SparseDriveHead',
        'SparsePoint3DDecoder',
        'SparsePoint3DEncoder',
        'SparsePoint3DKeyPointsGenerator',
        'SparsePoint3DRefinementModule',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'sparsedrive',
    'mm2onnx_driving.sparsedrive.family:SparseDriveFamily',
    facts='mm2onnx_driving.sparsedrive.runtime:SparseDriveFacts',
    runtime='mm2onnx_driving.sparsedrive.runtime',
    library='mmdet3d',
    claims=('SparseDrive',),
    exports='SparseDrive with detection, map, motion and planning (docs/models-cameras.md)',
    similar_names=('SparseDrive',),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
