"""Configs of small two-stage detectors of mmrotate: one of each kind, in each angle version."""

from mmcv import ConfigDict

from mmdeploy_ext.base.config import load_config

CONFIG = 'projects/mmrotate/configs/oriented_rcnn_toy.py'
KINDS = ('oriented_rcnn', 'faster_rcnn', 'roi_transformer', 'gliding_vertex')
UPRIGHT_ROIS = dict(
    type='SingleRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
    out_channels=32,
    featmap_strides=[4, 8, 16],
    finest_scale=28,
)
UPRIGHT_RPN = dict(
    type='RotatedRPNHead',
    bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
)


def upright_coder(version):
    """Return the coder of upright regions, by an angle version of mmrotate: 'oc', 'le90' or 'le135'."""
    swap = version != 'oc'
    return dict(
        type='DeltaXYWHAHBBoxCoder',
        angle_range=version,
        norm_factor=2 if swap else None,
        edge_swap=swap,
        target_means=(0.0,) * 5,
        target_stds=(0.1, 0.1, 0.2, 0.2, 1),
    )


def toy(kind, version='le90'):
    """Return the config of a detector: `kind` is one of `KINDS`, `version` that of its angles."""
    cfg = load_config(CONFIG)
    model = cfg.model
    rois, head = model.roi_head.bbox_roi_extractor, model.roi_head.bbox_head
    swap = version != 'oc'
    head.bbox_coder.update(angle_range=version, edge_swap=swap, proj_xy=swap)
    model.rpn_head.version = version
    if kind == 'oriented_rcnn':
        model.rpn_head.bbox_coder.angle_range = version
        return cfg
    model.rpn_head = dict(model.rpn_head, **UPRIGHT_RPN)
    if kind == 'faster_rcnn':
        model.type = 'RotatedFasterRCNN'
        first = dict(head, bbox_coder=upright_coder(version))
        model.roi_head = dict(
            type='RotatedStandardRoIHead', version=version, bbox_roi_extractor=UPRIGHT_ROIS, bbox_head=first
        )
    elif kind == 'roi_transformer':
        model.type = 'RoITransformer'
        first = dict(head, bbox_coder=upright_coder(version))
        model.roi_head = dict(
            type='RoITransRoIHead',
            version=version,
            num_stages=2,
            stage_loss_weights=[1, 1],
            bbox_roi_extractor=[UPRIGHT_ROIS, rois],
            bbox_head=[first, dict(head, reg_class_agnostic=False)],
        )
        model.train_cfg = None
    else:
        model.type = 'GlidingVertex'
        model.roi_head = dict(
            type='GVRatioRoIHead',
            version=version,
            bbox_roi_extractor=UPRIGHT_ROIS,
            bbox_head=dict(
                type='GVBBoxHead',
                version=version,
                num_shared_fcs=2,
                in_channels=32,
                fc_out_channels=64,
                roi_feat_size=7,
                num_classes=5,
                ratio_thr=0.8,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=(0.0,) * 4, target_stds=(0.1, 0.1, 0.2, 0.2)
                ),
                fix_coder=dict(type='GVFixCoder', angle_range=version),
                ratio_coder=dict(type='GVRatioCoder', angle_range=version),
                reg_class_agnostic=True,
            ),
        )
    cfg.model = ConfigDict(model)
    return cfg
