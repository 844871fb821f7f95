"""Layers and data sets that several systems share."""

MODELS_3D = {
    'bev_view': (
        'BEVFormerEncoder',
        'BEVFormerLayer',
        'CustomMSDeformableAttention',
        'DetectionTransformerDecoder',
        'MSDeformableAttention3D',
        'PerceptionTransformer',
        'SpatialCrossAttention',
        'TemporalSelfAttention',
    ),
    'datasets': (
        'BEVDetNuScenesDataset',
        'BevNuScenesDataset',
        'CustomNuScenesDataset',
        'FusionNuScenesDataset',
        'LoadAnnotationsBEVDepth',
        'NuScenes3DDetTrackDataset',
        'NuScenesSparse4DAdaptor',
        'PrepareImageInputs',
        'ResizeCropFlipImage',
    ),
    'lift_splat': (
        'BEVDetViewTransformer',
        'BEVOCCHead2D',
        'BEVOCCHead2D_V2',
        'Centerness_Head',
        'CustomFPN',
        'CustomResNet',
        'FPN_LSS',
        'LSSViewTransformerBEVDepth',
    ),
    'pipelines': (
        'ImageAug3D',
        'ImageNormalize',
        'NormalizeMultiviewImage',
        'PETRFormatBundle3D',
        'PadMultiViewImage',
        'RandomScaleImageMultiViewImage',
        'ResizeCropFlipRotImage',
    ),
    'query_decoder': (
        'PETRMultiheadAttention',
        'PETRMultiheadFlashAttention',
        'PETRTransformerDecoder',
    ),
    'sparse_instances': (
        'AsymmetricFFN',
        'DeformableFeatureAggregation',
        'DenseDepthNet',
        'SparseBox3DEncoder',
        'SparseBox3DKeyPointsGenerator',
        'SparseBox3DRefinementModule',
    ),
    'vovnet': (
        'CPFPN',
        'VoVNet',
        'VoVNetCP',
    ),
}
"""Module -> types; they need mmdet3d."""
