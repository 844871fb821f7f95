from projects.configs.nuscenes_stream import image_augmentation, stream_data
from projects.configs.petr_model import VOVNET_99

_base_ = ['../_base_/models/stream_petr_r50.py', '../_base_/plugin_runtime.py']
attention = dict(embed_dims=256, num_heads=8, dropout=0.1)
model = dict(
    img_backbone=dict(VOVNET_99, _delete_=True),
    img_neck=dict(in_channels=[768, 1024]),
    pts_bbox_head=dict(
        transformer=dict(
            decoder=dict(
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type='MultiheadAttention', **attention),
                        dict(type='PETRMultiheadFlashAttention', **attention),
                    ]
                )
            )
        )
    ),
)
data = stream_data(image_augmentation((320, 800), (0.47, 0.625)))
