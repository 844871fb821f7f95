# mmdet3d's FCOS3D in small, for generated pictures of six cameras.
from mmdeploy_ext.base.config import mmdet3d_config
from projects.configs import monocular

_base_ = [mmdet3d_config('fcos3d/fcos3d_r101_caffe_fpn_gn-head_dcn_2x8_1x_nus-mono3d.py')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=8,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16, num_outs=3),
    bbox_head=dict(
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        cls_branch=(16,),
        reg_branch=((16,), (16,), (16,), (16,), ()),
        dir_branch=(16,),
        attr_branch=(16,),
        centerness_branch=(16,),
        dcn_on_last_conv=False,
        strides=[8, 16, 32],
        regress_ranges=((-1, 48), (48, 96), (96, 1e8)),
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
    ),
    test_cfg=dict(nms_pre=60, nms_thr=0.05, max_per_img=40),
)
data = monocular.nuscenes()
