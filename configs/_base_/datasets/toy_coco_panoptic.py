# toy_coco.py with panoptic annotations, made by `mm2onnx synthetic panoptic --out data/toy_coco`.
_base_ = './toy_coco.py'
dataset_type = 'CocoPanopticDataset'
data_root = 'data/toy_coco/'
classes = (
    'disc',
    'square',
    'triangle',
    'star',
    'ring',
    'cross',
    'noise',
    'stripes',
    'checker',
    'gradient',
    'blobs',
)  # six of things, five of stuff
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='Resize', img_scale=(320, 256), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='SegRescale', scale_factor=1 / 4),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks', 'gt_semantic_seg']),
]
data = dict(
    train=dict(
        type=dataset_type,
        classes=classes,
        ann_file=data_root + 'annotations/panoptic_train2017.json',
        seg_prefix=data_root + 'annotations/panoptic_train2017/',
        pipeline=train_pipeline,
    ),
    val=dict(
        type=dataset_type,
        classes=classes,
        ann_file=data_root + 'annotations/panoptic_val2017.json',
        seg_prefix=data_root + 'annotations/panoptic_val2017/',
        ins_ann_file=data_root + 'annotations/instances_val2017.json',
    ),
    test=dict(
        type=dataset_type,
        classes=classes,
        ann_file=data_root + 'annotations/panoptic_val2017.json',
        seg_prefix=data_root + 'annotations/panoptic_val2017/',
        ins_ann_file=data_root + 'annotations/instances_val2017.json',
    ),
)
evaluation = dict(interval=4, metric='PQ')
