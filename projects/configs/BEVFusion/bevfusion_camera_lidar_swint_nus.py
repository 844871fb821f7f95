# BEVFusion of six cameras and LiDAR with Swin-T. Source: mit-han-lab/bevfusion db75150,
# configs/nuscenes/det/transfusion/secfpn/camera+lidar/swint_v0p075/convfuser.yaml.
_base_ = ['./bevfusion_camera_lidar_r50_nus.py']
model = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(
                _delete_=True,
                type='SwinTransformer',
                embed_dims=96,
                depths=[2, 2, 6, 2],
                num_heads=[3, 6, 12, 24],
                window_size=7,
                mlp_ratio=4,
                qkv_bias=True,
                qk_scale=None,
                drop_rate=0.0,
                attn_drop_rate=0.0,
                drop_path_rate=0.2,
                patch_norm=True,
                out_indices=[1, 2, 3],
                with_cp=False,
                convert_weights=True,
            ),
            neck=dict(in_channels=[192, 384, 768]),
        )
    )
)
