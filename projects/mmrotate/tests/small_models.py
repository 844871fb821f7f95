"""Small detectors of rotated boxes, one of each kind of one-stage head, with seeded weights.

`version` is an angle version of mmrotate ('oc', 'le90' or 'le135'), `head_type` the registered class of a
head, `settings` are entries of a part's config, and `name` is a key of `MODELS`.
"""

from pathlib import Path

import torch
from mmcv import Config

from dev.seeded.weights import seeded_model
from mmdeploy_ext.families.base import find_family

STRIDES = [8, 16, 32, 64]
CHANNELS, CLASSES = 16, 3
BACKBONE = dict(
    type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN')
)
NECK = dict(
    type='FPN',
    in_channels=[8, 16, 32, 64],
    out_channels=CHANNELS,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=4,
)
FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
TEST = dict(nms_pre=300, min_bbox_size=0, score_thr=0.02, nms=dict(iou_thr=0.1), max_per_img=200)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(256, 192),
        flip=False,
        transforms=[
            dict(type='RResize'),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ],
    ),
]


def coder(version, **settings):
    """Return a coder of deltas; the settings are those of most configs unless others are given."""
    defaults = dict(norm_factor=None, edge_swap=version == 'le90', proj_xy=version == 'le90')
    return dict(type='DeltaXYWHAOBBoxCoder', angle_range=version, **dict(defaults, **settings))


def anchor_head(head_type, version, square=False, **settings):
    """Return a head of anchors, or with `square` of one anchor per cell."""
    ratios = [1.0] if square else [1.0, 0.5, 2.0]
    generator = dict(type='RotatedAnchorGenerator', scales=[4], ratios=ratios, strides=STRIDES)
    return dict(
        dict(
            type=head_type,
            num_classes=CLASSES,
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            stacked_convs=1,
            anchor_generator=generator,
            bbox_coder=coder(version),
            loss_cls=FOCAL,
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        **settings,
    )


def refined(head_type, version, **settings):
    """Return a head whose priors are the boxes of the head before it."""
    generator = dict(type='PseudoAnchorGenerator', strides=STRIDES)
    return anchor_head(head_type, version, anchor_generator=generator, **settings)


def point_head(head_type, version, **settings):
    """Return a head of points."""
    return dict(
        dict(
            type=head_type,
            num_classes=CLASSES,
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            stacked_convs=1,
            strides=STRIDES,
            regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 100000000)),
            norm_on_bbox=True,
            bbox_coder=dict(type='DistanceAnglePointCoder', angle_version=version),
            norm_cfg=dict(type='GN', num_groups=4),
            loss_cls=FOCAL,
            loss_bbox=dict(type='RotatedIoULoss', loss_weight=1.0),
        ),
        **settings,
    )


def reppoints(head_type, version):
    """Return a detector whose boxes are rectangles around points."""
    head = dict(
        type=head_type,
        num_classes=CLASSES,
        in_channels=CHANNELS,
        feat_channels=CHANNELS,
        point_feat_channels=CHANNELS,
        stacked_convs=1,
        num_points=9,
        point_strides=STRIDES,
        norm_cfg=dict(type='GN', num_groups=4),
        loss_cls=FOCAL,
        loss_bbox_init=dict(type='ConvexGIoULoss', loss_weight=0.4),
        loss_bbox_refine=dict(type='ConvexGIoULoss', loss_weight=0.8),
        version=version,
    )
    return dict(type='RotatedRepPoints', bbox_head=head)


CSL = dict(angle_coder=dict(type='CSLCoder', angle_version='le90', omega=4, window='gaussian', radius=3))
S2A_CODER = dict(norm_factor=1, edge_swap=False, proj_xy=True)
REFINE = dict(in_channels=CHANNELS, featmap_strides=STRIDES)


def s2anet(version, head_type):
    """Return the parts of an S2A-Net."""
    return dict(
        type='S2ANet',
        fam_head=anchor_head(
            'RotatedRetinaHead', version, square=True, bbox_coder=coder(version, **S2A_CODER)
        ),
        align_cfgs=dict(type='AlignConv', kernel_size=3, channels=CHANNELS, featmap_strides=STRIDES),
        odm_head=refined(head_type, version, bbox_coder=coder(version, **S2A_CODER)),
    )


MODELS = dict(
    retina_le90=dict(type='RotatedRetinaNet', bbox_head=anchor_head('RotatedRetinaHead', 'le90')),
    retina_oc=dict(type='RotatedRetinaNet', bbox_head=anchor_head('RotatedRetinaHead', 'oc')),
    atss_le135=dict(type='RotatedRetinaNet', bbox_head=anchor_head('RotatedATSSHead', 'le135')),
    softmax=dict(
        type='RotatedRetinaNet',
        bbox_head=anchor_head(
            'RotatedRetinaHead', 'le90', loss_cls=dict(type='CrossEntropyLoss', loss_weight=1.0)
        ),
    ),
    csl=dict(type='RotatedRetinaNet', bbox_head=anchor_head('CSLRRetinaHead', 'le90', **CSL)),
    csl_angle=dict(
        type='RotatedRetinaNet',
        bbox_head=anchor_head('CSLRRetinaHead', 'le90', use_encoded_angle=False, **CSL),
    ),
    fcos=dict(type='RotatedFCOS', bbox_head=point_head('RotatedFCOSHead', 'le90', scale_angle=True)),
    csl_fcos=dict(type='RotatedFCOS', bbox_head=point_head('CSLRFCOSHead', 'le90', **CSL)),
    r3det=dict(
        type='R3Det',
        num_refine_stages=2,
        bbox_head=anchor_head('RotatedRetinaHead', 'oc'),
        frm_cfgs=[REFINE, REFINE],
        refine_heads=[refined('RotatedRetinaRefineHead', 'oc')] * 2,
    ),
    reppoints_oc=reppoints('RotatedRepPointsHead', 'oc'),
    oriented_reppoints=reppoints('OrientedRepPointsHead', 'le135'),
    sam_reppoints=reppoints('SAMRepPointsHead', 'le90'),
    s2anet=s2anet('le135', 'ODMRefineHead'),
)
"""Name -> parts of a config's `model` besides backbone and neck."""


def config(name):
    """Return the config of a model."""
    model = dict(MODELS[name], backbone=BACKBONE, neck=NECK, train_cfg=None, test_cfg=TEST)
    content = dict(model=model, data=dict(test=dict(pipeline=PIPELINE)))
    # without a text mmcv would read the file
    return Config(content, cfg_text=name, filename=f'{name}.py')


def write_config(name, folder):
    """Write the config of a model, and return its path."""
    path = Path(folder, f'{name}.py')
    config(name).dump(str(path))
    return str(path)


def seeded(name, seed=0):
    """Return config, family and model with seeded weights."""
    cfg = config(name)
    family = find_family(cfg)
    return cfg, family, seeded_model(cfg, family, seed)


def pictures(count, height=160, width=192, seed=0):
    """Return noise with structure, (count, 3, height, width) float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, height // 8, width // 8, generator=generator)
    fine = torch.randn(count, 3, height, width, generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=8) + fine / 4
