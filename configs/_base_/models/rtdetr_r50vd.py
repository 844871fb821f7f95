# RT-DETR R50vd: the numbers of the original's rtdetr_r50vd_6x_coco.yml.
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
model = dict(
    type='RTDETR',
    backbone=dict(type='PResNet', depth=50, freeze_norm=True, freeze_stem=True),
    encoder=dict(
        type='RTDETRHybridEncoder',
        in_channels=[512, 1024, 2048],
        hidden_dim=256,
        num_heads=8,
        feedforward=1024,
        expansion=1.0,
        position_layout='original',
    ),  # 'row_major' as transformers 5; they differ for non-square inputs only
    decoder=dict(
        type='RTDETRDecoder',
        num_classes=80,
        in_channels=[256, 256, 256],
        hidden_dim=256,
        num_queries=300,
        num_layers=6,
        num_heads=8,
        num_points=4,
        feedforward=1024,
        num_denoising=100,
    ),
    train_cfg=dict(cost=dict(cls=2.0, bbox=5.0, giou=2.0), loss=dict(cls=1.0, bbox=5.0, giou=2.0)),
    test_cfg=dict(max_per_img=300),
)
