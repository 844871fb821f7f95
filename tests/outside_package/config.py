custom_imports = dict(imports=['circles', 'circles.model'])
model = dict(type='CircleNet', num_classes=3, count=20)
normalise = dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(320, 192),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            normalise,
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    ),
]
