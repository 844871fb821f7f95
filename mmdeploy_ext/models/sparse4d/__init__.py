"""Sparse4D v3 at test time: instances of objects that are refined, remembered and tracked."""

MODELS_3D = {
    'aggregation': ('DeformableFeatureAggregation',),
    'bank': ('InstanceBank',),
    'blocks': (
        'AsymmetricFFN',
        'DenseDepthNet',
        'SparseBox3DEncoder',
        'SparseBox3DKeyPointsGenerator',
        'SparseBox3DRefinementModule',
    ),
    'dataset': ('NuScenes3DDetTrackDataset', 'NuScenesSparse4DAdaptor', 'ResizeCropFlipImage'),
    'detector': ('Sparse4D',),
    'head': ('Sparse4DHead', 'SparseBox3DDecoder'),
}
"""Module -> types; they need mmdet3d."""
