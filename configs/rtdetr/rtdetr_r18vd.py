# RT-DETR R18vd: half as wide CSP blocks, three decoder layers, batch normalisation that learns.
_base_ = ['./rtdetr_r50vd.py']
model = dict(
    backbone=dict(depth=18, freeze_norm=False, freeze_stem=False),
    encoder=dict(in_channels=[128, 256, 512], expansion=0.5),
    decoder=dict(num_layers=3),
)
