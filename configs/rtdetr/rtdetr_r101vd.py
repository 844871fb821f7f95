# RT-DETR R101vd: a wider encoder.
_base_ = ['./rtdetr_r50vd.py']
model = dict(
    backbone=dict(depth=101),
    encoder=dict(hidden_dim=384, feedforward=2048),
    decoder=dict(in_channels=[384, 384, 384]),
)
