"""What mmdet 3.3.0 finds with small detectors that mmdet 2.28 lacks, on generated weights and pictures.

`PYTHONPATH=tests/support .venv-mmdet3/bin/python tests/families/mmdet3_detectors_golden.py` writes
`mmdet3_detectors_golden.json`; mmpretrain 1.2.0 must be installed. The tests need numpy and torch alone.
"""

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import torch

from drawn_weights import drawn

FILE = Path(__file__).with_suffix('.json')
SIZE, SHAPE, ORIGINAL = (1, 3, 96, 128), (90, 120), (135, 190)
"""Of the batch, of the picture in it and of its original: (h, w)."""
SCALE = (120 / 190, 90 / 135)
"""Input / original: w, h."""
RESNET = dict(
    type='ResNet',
    depth=18,
    base_channels=8,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN', requires_grad=False),
    norm_eval=True,
)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt', arch='atto', layer_scale_init_value=1.0, gap_before_final_norm=False
)
FPN = dict(
    type='FPN',
    in_channels=[8, 16, 32, 64],
    out_channels=32,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=5,
    relu_before_extra_convs=True,
)
LAYERS = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU', inplace=True))
FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
GIOU, L1 = dict(type='GIoULoss', loss_weight=2.0), dict(type='L1Loss', loss_weight=5.0)
NORMED = dict(type='NormedLinear', tempearture=5, bias=True)
NMS = dict(
    nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=20
)


def condinst(name, channels, params):
    """Return CondInst or BoxInst."""
    features = dict(in_channels=32, feat_channels=16, start_level=0, end_level=2, out_channels=channels)
    return dict(
        type=name,
        backbone=RESNET,
        neck=FPN,
        bbox_head=dict(
            type=f'{name}BboxHead',
            num_params=params,
            num_classes=5,
            in_channels=32,
            stacked_convs=2,
            feat_channels=32,
            strides=[8, 16, 32, 64, 128],
            norm_on_bbox=True,
            centerness_on_reg=True,
            conv_bias=True,
            norm_cfg=dict(type='GN', num_groups=8),
            loss_cls=FOCAL,
            loss_bbox=GIOU,
        ),
        mask_head=dict(
            type=f'{name}MaskHead',
            num_layers=3,
            feat_channels=channels,
            size_of_interest=8,
            mask_out_stride=4,
            mask_feature_head=dict(
                **features, mask_stride=8, num_stacked_convs=1, norm_cfg=dict(type='BN', requires_grad=True)
            ),
            loss_mask=dict(type='DiceLoss', use_sigmoid=True, activate=True, eps=5e-6, loss_weight=1.0),
        ),
        test_cfg=dict(NMS, mask_thr=0.5),
    )


def detr(name, decoder=(), ffn=(), backbone=RESNET, channels=64, **changes):
    """Return Conditional DETR or DAB-DETR."""
    ffn_cfg = dict(embed_dims=256, feedforward_channels=64, num_fcs=2, ffn_drop=0.0, **dict(ffn))
    attention = dict(embed_dims=256, num_heads=8)
    cross = dict(attention, attn_drop=0.0)
    return dict(
        type=name,
        num_queries=12,
        backbone=dict(backbone, out_indices=(3,)),
        neck=dict(
            type='ChannelMapper',
            in_channels=[channels],
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            norm_cfg=None,
            num_outs=1,
        ),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=dict(attention, dropout=0.0), ffn_cfg=ffn_cfg)
        ),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(cross, cross_attn=False),
                cross_attn_cfg=dict(cross, cross_attn=True),
                ffn_cfg=ffn_cfg,
            ),
            **dict(decoder),
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        bbox_head=dict(
            type=f'{name}Head', num_classes=5, embed_dims=256, loss_cls=FOCAL, loss_bbox=L1, loss_iou=GIOU
        ),
        test_cfg=dict(max_per_img=12),
        **changes,
    )


def faster_of_v3det():
    """Return Faster R-CNN with the classifier of V3Det."""
    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4)
    nms = dict(type='nms', iou_threshold=0.6)
    return dict(
        type='FasterRCNN',
        backbone=RESNET,
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=16,
            num_outs=5,
            norm_cfg=dict(type='GN', num_groups=4),
            upsample_cfg=dict(mode='bilinear', align_corners=False),
        ),
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[4],
                ratios=[1.0, 2.0, 3.0],
                strides=[4, 8, 16, 32, 64],
                centers=[(8, 8)] * 5,
            ),
            bbox_coder=dict(coder, target_stds=[0.3] * 4, clip_border=False),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
            loss_bbox=L1,
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=16,
                featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=64,
                roi_feat_size=7,
                num_classes=5,
                bbox_coder=dict(coder, target_stds=[0.1, 0.1, 0.2, 0.2]),
                reg_class_agnostic=True,
                cls_predictor_cfg=NORMED,
                loss_cls=dict(
                    type='CrossEntropyCustomLoss', num_classes=5, use_sigmoid=True, loss_weight=1.0
                ),
                loss_bbox=L1,
            ),
        ),
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=50, nms=dict(nms, iou_threshold=0.7), min_bbox_size=2),
            rcnn=dict(score_thr=0.0001, nms=nms, max_per_img=20),
        ),
    )


def crowddet(with_refine):
    """Return CrowdDet, which finds more than its limit of results."""
    model = faster_of_v3det()
    roi_head = model['roi_head']
    extractor = roi_head['bbox_roi_extractor']
    extractor['roi_layer'].update(sampling_ratio=-1, aligned=True)
    head = dict(
        roi_head['bbox_head'],
        type='MultiInstanceBBoxHead',
        with_refine=with_refine,
        num_shared_fcs=2,
        num_classes=1,
        reg_class_agnostic=False,
        loss_cls=dict(type='CrossEntropyLoss', loss_weight=1.0, use_sigmoid=False, reduction='none'),
        loss_bbox=dict(type='SmoothL1Loss', loss_weight=1.0, reduction='none'),
    )
    head.pop('cls_predictor_cfg')
    test_cfg = copy.deepcopy(model['test_cfg'])
    test_cfg['rpn'].update(nms=dict(type='nms', iou_threshold=0.9))
    test_cfg['rcnn'].update(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5))
    return dict(
        model,
        type='CrowdDet',
        roi_head=dict(type='MultiInstanceRoIHead', bbox_roi_extractor=extractor, bbox_head=head),
        test_cfg=test_cfg,
    )


CASES = dict(
    crowddet=crowddet(False),
    crowddet_refine=crowddet(True),
    rtmdet_ins=dict(
        type='RTMDet',
        backbone=dict(type='CSPNeXt', arch='P5', deepen_factor=0.167, widen_factor=0.125, **LAYERS),
        neck=dict(
            type='CSPNeXtPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1, **LAYERS
        ),
        bbox_head=dict(
            type='RTMDetInsSepBNHead',
            num_classes=5,
            in_channels=32,
            stacked_convs=2,
            share_conv=True,
            pred_kernel_size=1,
            feat_channels=32,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_bbox=GIOU,
            loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean'),
            **LAYERS,
        ),
        test_cfg=dict(NMS, mask_thr_binary=0.5),
    ),
    condinst=condinst('CondInst', 8, 169),
    boxinst=condinst('BoxInst', 16, 593),
    v3det_faster=faster_of_v3det(),
    v3det_fcos=dict(
        type='FCOS',
        backbone=RESNET,
        neck=FPN,
        bbox_head=dict(
            type='FCOSHead',
            num_classes=5,
            in_channels=32,
            stacked_convs=1,
            feat_channels=32,
            strides=[8, 16, 32, 64, 128],
            cls_predictor_cfg=NORMED,
            norm_cfg=dict(type='GN', num_groups=8),
            loss_cls=dict(FOCAL, type='FocalCustomLoss', num_classes=5),
            loss_bbox=dict(type='IoULoss', loss_weight=1.0),
        ),
        test_cfg=dict(NMS, min_bbox_size=-1),  # mmdet 2.28 keeps boxes without area
    ),
    conditional_detr=detr('ConditionalDETR'),
    convnext=detr('ConditionalDETR', backbone=CONVNEXT, channels=320),
    convnext_v2=detr(
        'ConditionalDETR', backbone=dict(CONVNEXT, use_grn=True, layer_scale_init_value=0.0), channels=320
    ),
    dab_detr=detr(
        'DABDETR',
        decoder=dict(query_dim=4, query_scale_type='cond_elewise', with_modulated_hw_attn=True),
        ffn=dict(act_cfg=dict(type='PReLU')),
        with_random_refpoints=False,
        num_patterns=0,
    ),
)


def picture():
    """Return (1, 3, H, W) float32; what is beside the picture is 0."""
    batch = torch.from_numpy(np.random.default_rng(0).normal(0, 1, SIZE).astype(np.float32))
    batch[:, :, SHAPE[0] :], batch[..., SHAPE[1] :] = 0.0, 0.0
    return batch


def facts(rows, labels, masks=None):
    """Return boxes with scores (n, 5), labels, and the pixels in 8 bands of rows of each mask."""
    found = dict(rows=np.asarray(rows, float).round(5).tolist(), labels=np.asarray(labels).tolist())
    if masks is not None:
        found['pixels'] = [[int(band.sum()) for band in np.array_split(mask, 8)] for mask in masks]
    return found


def main():
    """Write the file, by mmdet 3."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict

    register_all_modules()
    importlib.import_module('mmpretrain.models')
    cases = {}
    for name, config in CASES.items():
        model = MODELS.build(ConfigDict(copy.deepcopy(config))).eval()
        for key, tensor in model.state_dict().items():
            tensor.copy_(drawn(key, tensor))
        meta = dict(batch_input_shape=SIZE[2:], img_shape=SHAPE, ori_shape=ORIGINAL, scale_factor=SCALE)
        with torch.no_grad():
            (sample,) = model.predict(picture(), [DetDataSample(metainfo=meta)], rescale=True)
        found = sample.pred_instances
        found = found[found.scores.argsort(descending=True, stable=True)]  # CrowdDet's are not in order
        rows = torch.cat([found.bboxes, found.scores[:, None]], 1)
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        masks = found.masks.numpy() if 'masks' in found else None
        cases[name] = dict(shapes=shapes, **facts(rows, found.labels, masks))
    FILE.write_text(json.dumps(cases) + '\n')


if __name__ == '__main__':
    main()
