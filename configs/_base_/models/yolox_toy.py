# YOLOX with a CSPDarknet of three sixteenths' width: 1.1 M parameters, trained from scratch.
norm_cfg = dict(type='BN', momentum=0.1, eps=0.001)  # mmdet's momentum of 0.03 is one for long schedules
model = dict(
    type='YOLOX',
    input_size=(320, 320),
    random_size_range=(10, 10),
    random_size_interval=10,
    backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.1875, norm_cfg=norm_cfg),
    neck=dict(
        type='YOLOXPAFPN', in_channels=[48, 96, 192], out_channels=40, num_csp_blocks=1, norm_cfg=norm_cfg
    ),
    bbox_head=dict(type='YOLOXHead', num_classes=6, in_channels=40, feat_channels=40, norm_cfg=norm_cfg),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
)
