"""VAD at test time: a bird's-eye view to objects with trajectories, lines of the map and a plan."""

MODELS_3D = {
    'detector': ('VAD', 'VADCustomNuScenesDataset'),
    'head': ('VADHead',),
    'transformer': (
        'CustomTransformerDecoder',
        'MapDetectionTransformerDecoder',
        'VADPerceptionTransformer',
    ),
}
"""Module -> types; they need mmdet3d."""
