"""The `model` and `data` sections of BEVDet's configs, for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES, MODALITY

CAMERAS = (
    'CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT',
)  # fmt: skip
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
CENTRES = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
CELL = 0.8
FACTORS = [1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 1.5, 3.5]
R50 = dict(type='ResNet', depth=50, num_stages=4, out_indices=(2, 3), style='pytorch')


def head(
    channels: int, pc_range: Sequence[float] = PC_RANGE, shared: int = 64, most: int = 500
) -> dict[str, Any]:
    """Return the head; `channels` are those of its input."""
    return dict(
        type='CenterHead',
        in_channels=channels,
        tasks=[dict(num_class=10, class_names=CLASS_NAMES)],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=shared,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=list(pc_range[:2]),
            post_center_range=CENTRES,
            max_num=most,
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[CELL / 8, CELL / 8],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        norm_bbox=True,
    )


def test_cfg(pc_range: Sequence[float] = PC_RANGE) -> dict[str, Any]:
    return dict(
        pts=dict(
            pc_range=list(pc_range[:2]),
            post_center_limit_range=CENTRES,
            max_per_img=500,
            max_pool_nms=False,
            min_radius=[4, 12, 10, 1, 0.85, 0.175],
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[CELL / 8, CELL / 8],
            pre_max_size=1000,
            post_max_size=500,
            nms_type=['rotate'],
            nms_thr=[0.2],
            nms_rescale_factor=[FACTORS],
        )
    )


def bevdet(
    backbone: Mapping[str, Any],
    maps: Sequence[int],
    neck: int,
    channels: int,
    depth_step: float,
    adjacent: int = 0,
    size: tuple[int, int] = (256, 704),
    side: float = 51.2,
    view: int = 256,
    most: int = 500,
    shared: int = 64,
) -> dict[str, Any]:
    """Return the model.

    Args:
        backbone: of the pictures.
        maps: channels of its maps.
        neck: channels of the feature map.
        channels: channels of a frame's view.
        depth_step: metres between depth bins.
        adjacent: frames before the present one that the model sees; 0 is BEVDet.
        size: (H, W) of the network's pictures.
        side: metres from the car to the sides of the view.
        view: channels of the encoded view.
        most: largest number of boxes.
        shared: channels of the head.
    """
    pc_range = [-side, -side, -5.0, side, side, 3.0]
    transformer = dict(
        type='LSSViewTransformer',
        grid_config=dict(
            x=[-side, side, CELL], y=[-side, side, CELL], z=[-5, 3, 8], depth=[1.0, 60.0, depth_step]
        ),
        input_size=size,
        in_channels=neck,
        out_channels=channels,
        downsample=16,
    )
    frames, widths = adjacent + 1, [2 * channels, 4 * channels, 8 * channels]
    model = dict(
        type='BEVDet',
        img_backbone=dict(backbone),
        img_neck=dict(
            type='CustomFPN',
            in_channels=list(maps),
            out_channels=neck,
            num_outs=1,
            start_level=0,
            out_ids=[0],
        ),
        img_view_transformer=transformer,
        img_bev_encoder_backbone=dict(type='CustomResNet', numC_input=channels * frames, num_channels=widths),
        img_bev_encoder_neck=dict(type='FPN_LSS', in_channels=widths[2] + widths[0], out_channels=view),
        pts_bbox_head=head(view, pc_range, shared, most),
        test_cfg=test_cfg(pc_range),
    )
    if adjacent:
        model.update(
            type='BEVDepth4D',
            align_after_view_transfromation=True,
            num_adj=adjacent,
            pre_process=dict(
                type='CustomResNet',
                numC_input=channels,
                num_layer=[2],
                num_channels=[channels],
                stride=[1],
                backbone_output_ids=[0],
            ),
        )
        transformer.update(
            type='LSSViewTransformerBEVDepth', depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96)
        )
    return model


def bevdet_data(
    size: tuple[int, int] = (256, 704),
    source: tuple[int, int] = (900, 1600),
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes_infos',
) -> dict[str, Any]:
    """Return the whole `data` section; sizes are (height, width) px, `source` of raw pictures."""
    cameras = dict(
        cams=list(CAMERAS),
        Ncams=len(CAMERAS),
        input_size=size,
        src_size=source,
        resize=(0.0, 0.0),
        rot=(0.0, 0.0),
        flip=False,
        crop_h=(0.0, 0.0),
        resize_test=0.0,
    )
    steps = [
        dict(type='DefaultFormatBundle3D', class_names=CLASS_NAMES, with_label=False),
        dict(
            type='Collect3D',
            keys=['img_inputs'],
            meta_keys=['sample_idx', 'scene_token', 'timestamp', 'box_type_3d'],
        ),
    ]
    pipeline = [
        dict(type='PrepareImageInputs', data_config=cameras),
        dict(type='LoadAnnotationsBEVDepth', bda_aug_conf=None, classes=CLASS_NAMES, is_train=False),
        dict(
            type='MultiScaleFlipAug3D', img_scale=(1333, 800), pts_scale_ratio=1, flip=False, transforms=steps
        ),
    ]
    test = dict(
        type='BEVDetNuScenesDataset',
        data_root=root,
        ann_file=f'{root}{infos}_val.pkl',
        pipeline=pipeline,
        classes=CLASS_NAMES,
        modality=MODALITY,
        box_type_3d='LiDAR',
        test_mode=True,
    )
    return dict(samples_per_gpu=1, workers_per_gpu=4, val=test, test=test)
