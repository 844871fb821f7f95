"""Parts of two-stage toys that are more than another head: cascades of masks, legacy coders, scored masks."""

import copy

from mmcv import ConfigDict

LEVELS, CHANNELS, CLASSES = 5, 32, 6


def narrow(model):
    """Give the Mask R-CNN of the demo fewer channels."""
    roi_head = model.roi_head
    model.neck.out_channels = CHANNELS
    model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = CHANNELS
    roi_head.bbox_head.in_channels = CHANNELS
    roi_head.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS)


def faster(model):
    """Make a Faster R-CNN."""
    model.type = 'FasterRCNN'
    del model.roi_head['mask_head'], model.roi_head['mask_roi_extractor']


def fast(model):
    """Make a Fast R-CNN; proposals are given."""
    faster(model)
    model.type = 'FastRCNN'
    del model['rpn_head'], model.test_cfg['rpn'], model.train_cfg['rpn'], model.train_cfg['rpn_proposal']


def double(model):
    """Make a Faster R-CNN with a head of convolutions for boxes and of layers for classes."""
    faster(model)
    model.roi_head.update(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3)
    own = dict(num_convs=1, num_fcs=1, conv_out_channels=32, fc_out_channels=CHANNELS)
    model.roi_head.bbox_head.update(type='DoubleConvFCBBoxHead', **own)


def generic(model):
    """Make a Faster R-CNN that pools regions from all levels."""
    faster(model)
    extractor = model.roi_head.bbox_roi_extractor
    del extractor['finest_scale']
    conv = dict(
        type='ConvModule',
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        kernel_size=3,
        padding=1,
        inplace=False,
    )
    extractor.update(type='GenericRoIExtractor', aggregation='sum', pre_cfg=conv, post_cfg=conv)


def sabl(model):
    """Make a Faster R-CNN that finds sides by buckets."""
    faster(model)
    coder = dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7)
    sizes = dict(roi_feat_size=7, reg_feat_up_ratio=2, reg_pre_kernel=3, reg_post_kernel=3)
    channels = dict(
        cls_in_channels=CHANNELS,
        reg_in_channels=CHANNELS,
        cls_out_channels=CHANNELS,
        reg_offset_out_channels=CHANNELS,
    )
    model.roi_head.bbox_head = dict(
        type='SABLHead', num_classes=6, reg_cls_out_channels=CHANNELS, num_cls_fcs=1, num_reg_fcs=0,
        reg_pre_num=1, reg_post_num=1, bbox_coder=coder, **sizes, **channels,
    )  # fmt: skip


def cascade(model, **stage):
    """Make three stages of boxes; `stage` replaces entries of each head."""
    model.type = 'CascadeRCNN'
    model.train_cfg.rcnn = [copy.deepcopy(model.train_cfg.rcnn) for _ in range(3)]
    roi_head = model.roi_head
    roi_head.update(type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25])
    roi_head.bbox_head = [_stage(roi_head.bbox_head, index) for index in range(3)]
    for head in roi_head.bbox_head:
        head.update(stage)


def _stage(head, index):
    """Return the head of a stage; the second one regresses by class."""
    head = copy.deepcopy(head)
    head.bbox_coder.target_stds = [value / (index + 1) for value in head.bbox_coder.target_stds]
    head.reg_class_agnostic = index != 1
    return head


def _semantic(roi_head, kind):
    layer = dict(type='RoIAlign', output_size=14, sampling_ratio=0)
    roi_head.semantic_roi_extractor = dict(
        type='SingleRoIExtractor', roi_layer=layer, out_channels=CHANNELS, featmap_strides=[8]
    )
    sizes = dict(num_ins=LEVELS, fusion_level=1, num_convs=2, num_classes=9)
    roi_head.semantic_head = dict(type=kind, in_channels=CHANNELS, conv_out_channels=CHANNELS, **sizes)


def htc(model):
    """Make an HTC."""
    cascade(model)
    model.type, roi_head = 'HybridTaskCascade', model.roi_head
    roi_head.update(type='HybridTaskCascadeRoIHead', interleaved=True, mask_info_flow=True)
    heads = [copy.deepcopy(roi_head.mask_head) for _ in range(3)]
    for index, head in enumerate(heads):
        head.update(type='HTCMaskHead', with_conv_res=index > 0)
    roi_head.mask_head = heads
    _semantic(model.roi_head, 'FusedSemanticHead')


def scnet(model):
    """Make an SCNet with all of its heads."""
    cascade(model, type='SCNetBBoxHead', num_shared_fcs=2)
    model.type, roi_head = 'SCNet', model.roi_head
    roi_head.type = 'SCNetRoIHead'
    roi_head.mask_head.update(type='SCNetMaskHead', num_convs=4)
    _semantic(roi_head, 'SCNetSemanticHead')
    sizes = dict(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_classes=CLASSES)
    roi_head.glbctx_head = dict(type='GlobalContextHead', num_convs=2, conv_to_res=True, **sizes)
    relay = dict(in_channels=128, out_conv_channels=CHANNELS, roi_feat_size=7, scale_factor=2)
    roi_head.feat_relay_head = dict(type='FeatureRelayHead', **relay)


def legacy(model):
    """Make anchors and coders those of mmdet 1.x."""
    model.rpn_head.anchor_generator.update(type='LegacyAnchorGenerator', center_offset=0.5)
    coders = [model.rpn_head.bbox_coder, model.roi_head.bbox_head.bbox_coder]
    for coder in coders:
        coder.type = 'LegacyDeltaXYWHBBoxCoder'
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        model.roi_head[name].roi_layer.update(sampling_ratio=2, aligned=False)


def judged(model):
    """Make a Mask Scoring R-CNN."""
    model.type, roi_head = 'MaskScoringRCNN', model.roi_head
    roi_head.type = 'MaskScoringRoIHead'
    sizes = dict(num_convs=2, num_fcs=1, in_channels=CHANNELS, conv_out_channels=CHANNELS, fc_out_channels=64)
    roi_head.mask_iou_head = dict(type='MaskIoUHead', num_classes=CLASSES, roi_feat_size=14, **sizes)


def points(model):
    """Make a PointRend."""
    model.type, roi_head = 'PointRend', model.roi_head
    roi_head.type = 'PointRendRoIHead'
    roi_head.mask_roi_extractor = dict(
        type='GenericRoIExtractor',
        aggregation='concat',
        roi_layer=dict(type='SimpleRoIAlign', output_size=14),
        out_channels=CHANNELS,
        featmap_strides=[4],
    )
    sizes = dict(in_channels=CHANNELS, num_classes=CLASSES)
    coarse = dict(num_fcs=1, conv_out_channels=CHANNELS, fc_out_channels=128)
    roi_head.mask_head = dict(type='CoarseMaskHead', **sizes, **coarse)
    roi_head.point_head = dict(type='MaskPointHead', num_fcs=2, fc_channels=64, **sizes)
    model.test_cfg.rcnn.update(subdivision_steps=3, subdivision_num_points=196, scale_factor=2)


def grid(model):
    """Make a Grid R-CNN."""
    faster(model)
    model.type, roi_head = 'GridRCNN', model.roi_head
    roi_head.type, roi_head.bbox_head.with_reg = 'GridRoIHead', False
    roi_head.grid_roi_extractor = copy.deepcopy(roi_head.bbox_roi_extractor)
    roi_head.grid_roi_extractor.roi_layer.output_size = 14
    sizes = dict(num_convs=2, in_channels=CHANNELS, point_feat_channels=8, grid_points=9)
    roi_head.grid_head = dict(type='GridHead', norm_cfg=dict(type='GN', num_groups=36), **sizes)


def panoptic(model):
    """Make a Panoptic FPN."""
    model.type = 'PanopticFPN'
    kinds = dict(num_things_classes=CLASSES, num_stuff_classes=5)
    norm = dict(type='GN', num_groups=8, requires_grad=True)
    levels = dict(in_channels=CHANNELS, inner_channels=32, start_level=0, end_level=4)
    model.semantic_head = dict(type='PanopticFPNHead', norm_cfg=norm, **kinds, **levels)
    model.panoptic_fusion_head = ConfigDict(type='HeuristicFusionHead', **kinds)
    nms = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
    masks = dict(mask_thr_binary=0.5, mask_overlap=0.5, stuff_area_limit=64)
    model.test_cfg.panoptic = ConfigDict(score_thr=0.4, max_per_img=100, nms=nms, **masks)


def seesaw(model):
    """Make classes those of Seesaw loss, and the last layers normed."""
    roi_head, normed = model.roi_head, dict(tempearture=20)
    roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=CLASSES)
    roi_head.bbox_head.cls_predictor_cfg = dict(normed, type='NormedLinear')
    roi_head.mask_head.predictor_cfg = dict(normed, type='NormedConv2d')
    model.test_cfg.rcnn.score_thr = 1e-4


def carafe(model):
    """Make neck and mask head enlarge maps by CARAFE."""
    upsample = dict(up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1)
    upsample['compressed_channels'] = 16
    model.neck.update(type='FPN_CARAFE', start_level=0, end_level=-1, norm_cfg=None, act_cfg=None)
    model.neck.update(order=('conv', 'norm', 'act'), upsample_cfg=dict(upsample, type='carafe'))
    model.roi_head.mask_head.upsample_cfg = dict(upsample, type='carafe', scale_factor=2)


def soft(model):
    """Make a Faster R-CNN with soft suppression, of mmdet's own settings; lists are not full."""
    faster(model)
    model.test_cfg.rcnn.max_per_img = 600
    model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)


def moved(model):
    """Make a Faster R-CNN with modulated deformable pooling of regions."""
    faster(model)
    layer = dict(type='ModulatedDeformRoIPoolPack', output_size=7, deform_fc_channels=64)
    layer['output_channels'] = CHANNELS
    model.roi_head.bbox_roi_extractor.roi_layer = layer


def guided(model):
    """Make a Faster R-CNN with guided anchors."""
    faster(model)
    generator = dict(type='AnchorGenerator', strides=[4, 8, 16, 32, 64])
    scales = dict(octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0])
    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.07, 0.07, 0.14, 0.14])
    model.rpn_head = ConfigDict(
        type='GARPNHead',
        in_channels=CHANNELS,
        feat_channels=CHANNELS,
        approx_anchor_generator=dict(generator, **scales),
        square_anchor_generator=dict(generator, ratios=[1.0], scales=[4]),
        anchor_coder=coder,
        bbox_coder=dict(coder, target_stds=[0.07, 0.07, 0.11, 0.11]),
        loc_filter_thr=0.01,
    )
    model.test_cfg.rpn.nms_post, model.train_cfg = 60, None


def rpn(model):
    """Leave the head of regions out."""
    model.type = 'RPN'
    del model['roi_head'], model.test_cfg['rcnn']


def cascade_faster(model):
    """Make a Cascade R-CNN without masks."""
    faster(model)
    cascade(model)


PARTS = dict(
    faster=faster,
    cascade=cascade_faster,
    mask=lambda model: None,
    cascade_mask=cascade,
    rpn=rpn,
    fast=fast,
    double=double,
    generic=generic,
    sabl=sabl,
    htc=htc,
    scnet=scnet,
    legacy=legacy,
    judged=judged,
    points=points,
    grid=grid,
    seesaw=seesaw,
    carafe=carafe,
    moved=moved,
    guided=guided,
    soft=soft,
    panoptic=panoptic,
)
"""Kind of toy -> what makes it of the Mask R-CNN."""
