"""Layers and data sets that several systems share."""

MODELS_3D = {
    'bev_view.attention': (
        'CustomMSDeformableAttention',
        'MSDeformableAttention3D',
        'SpatialCrossAttention',
        'TemporalSelfAttention',
    ),
    'bev_view.transformer': (
        'BEVFormerEncoder',
        'BEVFormerLayer',
        'DetectionTransformerDecoder',
        'PerceptionTransformer',
    ),
    'cp_fpn': ('CPFPN',),
    'datasets.bevdet_dataset': ('BEVDetNuScenesDataset', 'LoadAnnotationsBEVDepth', 'PrepareImageInputs'),
    'datasets.nuscenes_dataset': (
        'BevNuScenesDataset',
        'CustomNuScenesDataset',
        'FusionNuScenesDataset',
    ),
    'datasets.pipelines': (
        'ImageAug3D',
        'ImageNormalize',
        'NormalizeMultiviewImage',
        'PETRFormatBundle3D',
        'PadMultiViewImage',
        'RandomScaleImageMultiViewImage',
        'ResizeCropFlipRotImage',
    ),
    'datasets.track_dataset': ('NuScenes3DDetTrackDataset', 'NuScenesSparse4DAdaptor', 'ResizeCropFlipImage'),
    'lift_splat.depth_net': ('CustomFPN', 'CustomResNet', 'FPN_LSS'),
    'lift_splat.heads': ('BEVOCCHead2D', 'BEVOCCHead2D_V2', 'Centerness_Head'),
    'lift_splat.view_transformer': ('BEVDetViewTransformer', 'LSSViewTransformerBEVDepth'),
    'query_decoder': ('PETRMultiheadAttention', 'PETRMultiheadFlashAttention', 'PETRTransformerDecoder'),
    'sparse_instances.blocks': (
        'AsymmetricFFN',
        'DeformableFeatureAggregation',
        'DenseDepthNet',
        'SparseBox3DEncoder',
        'SparseBox3DKeyPointsGenerator',
        'SparseBox3DRefinementModule',
    ),
    'vovnet': ('VoVNet', 'VoVNetCP'),
}
"""Module -> types; they need mmdet3d."""
