# mmdet3d's PGD for KITTI in small, for generated pictures as those of KITTI.
from mmdeploy_ext.base.config import mmdet3d_config
from projects.configs import monocular

_base_ = [mmdet3d_config('pgd/pgd_r101_caffe_fpn_gn-head_3x4_4x_kitti-mono3d.py')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=8,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        cls_branch=(16,),
        reg_branch=((16,), (16,), (16,), (16,), (16,), (16,)),
        dir_branch=(16,),
        attr_branch=(16,),
        centerness_branch=(16,),
        depth_branch=(16,),
        weight_branch=((16,),),
        dcn_on_last_conv=False,
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
    ),
    test_cfg=dict(nms_pre=60, max_per_img=40),
)
data = monocular.kitti()
