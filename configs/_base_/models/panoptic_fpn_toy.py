# Panoptic FPN: the toy Mask R-CNN with a head of stuff.
_base_ = './mask_rcnn_toy.py'
model = dict(
    type='PanopticFPN',
    backbone=dict(norm_eval=True),
    semantic_head=dict(
        type='PanopticFPNHead',
        in_channels=64,
        inner_channels=64,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        num_things_classes=6,
        num_stuff_classes=5,
    ),
    panoptic_fusion_head=dict(type='HeuristicFusionHead', num_things_classes=6, num_stuff_classes=5),
    test_cfg=dict(
        panoptic=dict(
            score_thr=0.6,
            max_per_img=100,
            mask_thr_binary=0.5,
            mask_overlap=0.5,
            nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True),
            stuff_area_limit=256,
        )
    ),
)  # of COCO's 4096, as the pictures are a sixteenth
