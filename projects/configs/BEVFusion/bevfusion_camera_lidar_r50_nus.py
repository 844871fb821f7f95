# BEVFusion of six cameras and LiDAR with ResNet-50, as NVIDIA deploys it. Source: NVIDIA-AI-IOT/
# Lidar_AI_Solution 787ad95, CUDA-BEVFusion/configs/nuscenes/det/transfusion/secfpn/camera+lidar/resnet50,
# over mit-han-lab/bevfusion db75150.
from projects.configs.nuscenes_fusion import fusion_data

custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
voxel_size = [0.075, 0.075, 0.2]
norm_bev = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='BEVFusion',
    encoders=dict(
        camera=dict(
            backbone=dict(
                type='ResNet',
                depth=50,
                num_stages=4,
                out_indices=(1, 2, 3),
                frozen_stages=-1,
                norm_cfg=dict(type='BN', requires_grad=True),
                norm_eval=False,
                style='pytorch',
            ),
            neck=dict(
                type='GeneralizedLSSFPN',
                in_channels=[512, 1024, 2048],
                out_channels=256,
                num_outs=3,
                norm_cfg=dict(type='BN2d', requires_grad=True),
                act_cfg=dict(type='ReLU', inplace=True),
                upsample_cfg=dict(mode='bilinear', align_corners=False),
            ),
            vtransform=dict(
                type='DepthLSSTransform',
                in_channels=256,
                out_channels=80,
                image_size=(256, 704),
                feature_size=(32, 88),
                xbound=(-54.0, 54.0, 0.3),
                ybound=(-54.0, 54.0, 0.3),
                zbound=(-10.0, 10.0, 20.0),
                dbound=(1.0, 60.0, 0.5),
                downsample=2,
            ),
        ),
        lidar=dict(
            voxelize=dict(
                max_num_points=10,
                point_cloud_range=point_cloud_range,
                voxel_size=voxel_size,
                max_voxels=(120000, 160000),
            ),
            backbone=dict(
                type='BEVFusionSparseEncoder',
                in_channels=5,
                sparse_shape=[1440, 1440, 41],
                output_channels=128,
                encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
                encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
                block_type='basicblock',
            ),
        ),
    ),
    fuser=dict(type='ConvFuser', in_channels=[80, 256], out_channels=256),
    decoder=dict(
        backbone=dict(
            type='SECOND',
            in_channels=256,
            out_channels=[128, 256],
            layer_nums=[5, 5],
            layer_strides=[1, 2],
            norm_cfg=norm_bev,
            conv_cfg=dict(type='Conv2d', bias=False),
        ),
        neck=dict(
            type='SECONDFPN',
            in_channels=[128, 256],
            out_channels=[256, 256],
            upsample_strides=[1, 2],
            norm_cfg=norm_bev,
            upsample_cfg=dict(type='deconv', bias=False),
            use_conv_for_no_stride=True,
        ),
    ),
    heads=dict(
        object=dict(
            type='TransFusionHead',
            num_proposals=200,
            in_channels=512,
            hidden_channel=128,
            num_classes=10,
            num_decoder_layers=1,
            num_heads=8,
            nms_kernel_size=3,
            ffn_channel=256,
            dropout=0.1,
            bn_momentum=0.1,
            activation='relu',
            auxiliary=True,
            train_cfg=dict(
                dataset='nuScenes',
                point_cloud_range=point_cloud_range,
                grid_size=[1440, 1440, 41],
                voxel_size=voxel_size,
                out_size_factor=8,
                gaussian_overlap=0.1,
                min_radius=2,
                pos_weight=-1,
                code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
                assigner=dict(
                    type='HungarianAssigner3D',
                    cls_cost=dict(type='FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
                    reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25),
                    iou_cost=dict(type='IoU3DCost', weight=0.25),
                ),
            ),
            test_cfg=dict(
                dataset='nuScenes',
                grid_size=[1440, 1440, 41],
                out_size_factor=8,
                voxel_size=voxel_size[:2],
                pc_range=point_cloud_range[:2],
                nms_type=None,
            ),
            common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
            bbox_coder=dict(
                type='TransFusionBBoxCoder',
                pc_range=point_cloud_range[:2],
                post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
                score_threshold=0.0,
                out_size_factor=8,
                voxel_size=voxel_size[:2],
                code_size=10,
            ),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_heatmap=dict(type='GaussianFocalLoss', loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=0.25),
        ),
    ),
)
data = fusion_data(
    dict(final_dim=[256, 704], resize_lim=[0.48, 0.48]),
    point_cloud_range,
    train_image=dict(final_dim=[256, 704], resize_lim=[0.38, 0.55], rot_lim=[-5.4, 5.4], rand_flip=True),
    rotation=0.78539816,
    scale=(0.9, 1.1),
)
