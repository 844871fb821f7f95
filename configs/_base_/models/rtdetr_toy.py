# RT-DETR with a quarter-width R18vd: 1.8 M parameters, trained from scratch (so BN learns).
_base_ = ['./rtdetr_r50vd.py']
model = dict(
    backbone=dict(depth=18, base_channels=16, freeze_norm=False, freeze_stem=False),
    encoder=dict(in_channels=[32, 64, 128], hidden_dim=96, num_heads=4, feedforward=192, expansion=0.5),
    decoder=dict(
        num_classes=6,
        in_channels=[96, 96, 96],
        hidden_dim=96,
        num_queries=60,
        num_layers=3,
        num_heads=4,
        feedforward=192,
        num_denoising=40,
    ),
    test_cfg=dict(max_per_img=60),
)
