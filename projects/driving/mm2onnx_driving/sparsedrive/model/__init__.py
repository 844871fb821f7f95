"""SparseDrive at test time."""

MODELS_3D = {
    'layers': (
        'HierarchicalPlanningDecoder',
        'InstanceBank',
        'InstanceQueue',
        'MotionPlanningHead',
        'MotionPlanningRefinementModule',
        'MultiheadFlashAttention',
        'Sparse4DHead',
        'SparseBox3DDecoder',
        'SparseBox3DMotionDecoder',
        'SparsePoint3DDecoder',
        'SparsePoint3DEncoder',
        'SparsePoint3DKeyPointsGenerator',
        'SparsePoint3DRefinementModule',
    ),
    'detector': ('NuScenes3DDataset', 'SparseDrive', 'SparseDriveHead'),
}
"""Module -> types; they need mmdet3d."""
