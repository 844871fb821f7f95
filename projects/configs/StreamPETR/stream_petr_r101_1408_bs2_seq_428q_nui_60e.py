# The setting of the paper's ResNet-101 rows (1408x512); upstream publishes no file for it.
from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['./stream_petr_r50_704_bs2_seq_428q_nui_60e.py']
model = dict(
    img_backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='ckpts/cascade_mask_rcnn_r101_fpn_1x_nuim_20201024_134804-45215b1e.pth'),
    )
)
data = stream_data(image_augmentation((512, 1408), (0.76, 1.10)))
