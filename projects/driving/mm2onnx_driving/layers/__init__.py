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
    'datasets.bev_dataset': ('BevNuScenesDataset',),
    'datasets.bevdet_dataset': ('BEVDetNuScenesDataset', 'LoadAnnotationsBEVDepth', 'PrepareImageInputs'),
    'datasets.nuscenes_dataset': ('CustomNuScenesDataset', 'FusionNuScenesDataset'),
    'datasets.pipelines.augmentation': ('ResizeCropFlipRotImage',),
    'datasets.pipelines.fusion': ('ImageAug3D', 'ImageNormalize'),
    'datasets.pipelines.multi_view_image': (
        'NormalizeMultiviewImage',
        'PETRFormatBundle3D',
        'PadMultiViewImage',
        'RandomScaleImageMultiViewImage',
    ),
    'datasets.track_dataset': ('NuScenes3DDetTrackDataset', 'NuScenesSparse4DAdaptor', 'ResizeCropFlipImage'),
    'lift_splat.centerness_head': ('Centerness_Head',),
    'lift_splat.encoders': ('CustomFPN', 'CustomResNet', 'FPN_LSS'),
    'lift_splat.occupancy_head': ('BEVOCCHead2D', 'BEVOCCHead2D_V2'),
    'lift_splat.view_transformer': ('BEVDetViewTransformer', 'LSSViewTransformerBEVDepth'),
    'query_decoder': ('PETRMultiheadAttention', 'PETRMultiheadFlashAttention', 'PETRTransformerDecoder'),
    'sparse_instances.aggregation': ('DeformableFeatureAggregation',),
    'sparse_instances.blocks': (
        'AsymmetricFFN',
        'DenseDepthNet',
        'SparseBox3DEncoder',
        'SparseBox3DKeyPointsGenerator',
        'SparseBox3DRefinementModule',
    ),
    'vovnet': ('VoVNet', 'VoVNetCP'),
}
"""Module -> types; they need mmdet3d."""
