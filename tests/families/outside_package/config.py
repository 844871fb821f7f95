custom_imports = dict(imports=['gauges.head'])
model = dict(
    type='SingleStageDetector',
    backbone=dict(type='ResNet', depth=18, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    bbox_head=dict(type='GaugeHead', num_classes=6, in_channels=128, stride=8),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(320, 192),
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True),
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    ),
]
