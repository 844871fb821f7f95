# COCO as RT-DETR takes it: RGB / 255, 640x640 without keeping the ratio, resized as Pillow does (with
# antialiasing). Augmentation: the original's photometric distortion, zoom-out (fill 0) and IoU crop
# (lyuwenyu/RT-DETR, rtdetr_pytorch/configs/rtdetr/include/dataloader.yml) by mmdet's steps of the same kind.
# Differs in: the crop is tried for every image (there for 80 %), brightness is added (there a factor), and
# the size is drawn per image (there per batch).
from mmdeploy_ext.base.config import mmdet_config

_base_ = mmdet_config('_base_/datasets/coco_detection.py')
img_norm_cfg = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], to_rgb=True)
img_scale = (640, 640)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion'),
    dict(type='Expand', mean=[0, 0, 0], ratio_range=(1, 4), prob=0.5),
    dict(type='MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(
        type='Resize',
        img_scale=[(size, size) for size in range(480, 801, 32)],
        multiscale_mode='value',
        keep_ratio=False,
    ),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=img_scale,
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=False, backend='pillow'),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    ),
]
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=4,
    train=dict(pipeline=train_pipeline),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
