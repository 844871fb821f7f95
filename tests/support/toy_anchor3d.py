"""Small PointPillars, SECOND and SSN with anchors, exported once; sweeps are the tiny CenterPoint's."""

import tempfile
from pathlib import Path

import torch

from made_once import made_once
from mmdeploy_ext.runtime.frames import Sweep
from toy_centerpoint import exported_of, register, replaced_words, sweep
from toy_spread import spread_out

CLASSES = 'car', 'bus', 'truck'
HEAD = """
pc_range = [-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]
norm = dict(type='BN', eps=1e-3, momentum=0.01)
head = dict(
    type='Anchor3DHead', num_classes=3, in_channels=16, feat_channels=16, use_direction_classifier=True,
    anchor_generator=dict(
        type='AlignedAnchor3DRangeGenerator',
        ranges=[[-6.4, -8.0, z, 6.4, 8.0, z] for z in (-0.6, -1.0, -1.2)],
        sizes=[[0.8, 0.6, 1.7], [1.8, 0.6, 1.7], [3.9, 1.6, 1.5]], rotations=[0, 1.57], reshape_out=False),
    diff_rad_by_sin=True, bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder'),
    loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='SmoothL1Loss'),
    loss_dir=dict(type='CrossEntropyLoss', use_sigmoid=False))
test = dict(use_rotate_nms=True, nms_across_levels=False, nms_thr=0.1, score_thr=0.1, min_bbox_size=0,
            nms_pre=100, max_num=40)
second = dict(type='SECOND', in_channels=16, out_channels=[8, 16], layer_nums=[1, 1],
              layer_strides=[2, 2], norm_cfg=norm, conv_cfg=dict(type='Conv2d', bias=False))
neck = dict(type='SECONDFPN', in_channels=[8, 16], out_channels=[8, 8], upsample_strides=[1, 2],
            norm_cfg=norm, upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True)
layer = dict(max_num_points=4, voxel_size=[0.4, 0.4, 3.2], max_voxels=(500, 600), point_cloud_range=pc_range)
vfe = dict(type='HardVFE', in_channels=5, feat_channels=[16, 16], with_distance=False,
           with_cluster_center=True, with_voxel_center=True, voxel_size=(0.4, 0.4, 3.2),
           point_cloud_range=pc_range, norm_cfg=dict(type='BN1d'))
scatter = dict(type='PointPillarsScatter', in_channels=16, output_shape=[40, 32])
"""
KITTI = """
model = dict(
    type='VoxelNet', voxel_layer=layer,
    voxel_encoder=dict(type='PillarFeatureNet', in_channels=5, feat_channels=[16], voxel_size=(0.4, 0.4, 3.2),
                       point_cloud_range=pc_range),
    middle_encoder=scatter,
    backbone=second, neck=neck, bbox_head=head, test_cfg=test)
"""
NUSCENES = """
head.update(
    bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=9), dir_offset=-0.7854, in_channels=16,
    anchor_generator=dict(
        type='AlignedAnchor3DRangeGenerator', scales=[1, 2], ranges=[[-6.4, -8.0, -0.8, 6.4, 8.0, -0.8]],
        sizes=[[0.8, 0.6, 1.7], [3.9, 1.6, 1.5]], custom_values=[0, 0],
        rotations=[0, 1.57], reshape_out=True))
test.update(use_rotate_nms=False, nms_thr=0.3)
fpn = dict(type='FPN', norm_cfg=dict(type='BN2d'), act_cfg=dict(type='ReLU'), in_channels=[8, 16],
           out_channels=16, start_level=0, num_outs=2)
model = dict(
    type='MVXFasterRCNN', pts_voxel_layer=layer,
    pts_voxel_encoder=vfe, pts_middle_encoder=scatter,
    pts_backbone=second, pts_neck=fpn, pts_bbox_head=head, test_cfg=dict(pts=test))
"""
SHAPES = """
norm2d = dict(type='BN2d')
head.update(
    type='ShapeAwareHead', bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=9), dir_offset=-0.7854,
    anchor_generator=dict(
        type='AlignedAnchor3DRangeGeneratorPerCls',
        ranges=[[-6.4, -8.0, z, 6.4, 8.0, z] for z in (-0.6, -1.0, -1.2)],
        sizes=[[0.8, 0.6, 1.7], [1.8, 0.6, 1.7], [3.9, 1.6, 1.5]], custom_values=[0, 0], rotations=[0, 1.57],
        reshape_out=False),
    tasks=[dict(num_class=2, class_names=['car', 'bus'], shared_conv_channels=(8, 8),
                shared_conv_strides=(1, 1), norm_cfg=norm2d),
           dict(num_class=1, class_names=['truck'], shared_conv_channels=(8, 8, 8),
                shared_conv_strides=(2, 1, 1), norm_cfg=norm2d)])
model = dict(
    type='MVXFasterRCNN', pts_voxel_layer=layer,
    pts_voxel_encoder=vfe, pts_middle_encoder=scatter,
    pts_backbone=second, pts_neck=neck, pts_bbox_head=head, test_cfg=dict(pts=test))
del norm2d
"""
VOXELS = """
head['anchor_generator']['type'] = 'Anchor3DRangeGenerator'
layer['voxel_size'] = [0.4, 0.4, 0.4]
second['layer_strides'] = [1, 2]
model = dict(
    type='VoxelNet', voxel_layer=layer, voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
    middle_encoder=dict(
        type='SparseEncoder', in_channels=5, sparse_shape=[9, 40, 32], base_channels=4, output_channels=8,
        encoder_channels=((4, 4, 8), (8, 8)), encoder_paddings=((0, 0, 1), (0, 0)), block_type='basicblock'),
    backbone=second, neck=neck, bbox_head=head, test_cfg=test)
"""
DYNAMIC = """
model['type'] = 'DynamicVoxelNet'
layer.update(max_num_points=-1, max_voxels=(-1, -1))
"""
DYNAMIC_PILLARS = (
    KITTI.replace("'PillarFeatureNet'", "'DynamicPillarFeatureNet'").replace('[16], v', '[16, 16], v')
    + DYNAMIC
)
DYNAMIC_VOXELS = (
    VOXELS.replace(
        "type='HardSimpleVFE', num_features=5",
        "type='DynamicSimpleVFE', voxel_size=layer['voxel_size'], point_cloud_range=pc_range",
    )
    + DYNAMIC
)
SASSD = VOXELS.replace("'VoxelNet'", "'SASSD'").replace("'SparseEncoder'", "'SparseEncoderSASSD'")
SPREAD_TEST = {
    'score_thr=0.1': 'score_thr=0.03',
    'nms_pre=100, max_num=40': 'nms_pre=300, max_num=160',
    'ranges=[[-6.4, -8.0, z, 6.4, 8.0, z] for': 'ranges=[[-6.4, -7.2, z, 6.0, 8.0, z] for',
}
"""Words of toys whose results are of all scores, and whose limits drop something."""
SPREAD = dict(
    conv_cls=([1.6], [-5.0]),
    conv_reg=([0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.8, 3.0, 3.0], [0.0]),
    conv_dir_cls=([1.0], [0.0]),
)
"""Last layer of the head -> deviations and means of its channels, see `toy_spread.spread_out`."""
DATA = """
del head, test, second, neck, layer, norm, vfe, scatter
data = dict(test=dict(type='KittiDataset', classes=['car', 'bus', 'truck'], pipeline=[
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5),
    dict(type='DefaultFormatBundle3D', class_names=[], with_label=False),
    dict(type='Collect3D', keys=['points'])]))
"""
KINDS = dict(
    kitti=KITTI,
    old=KITTI + "box_convention = '0.17'\n",
    nuscenes=NUSCENES,
    voxels=VOXELS,
    shapes=SHAPES,
    dynamic=DYNAMIC_PILLARS,
    dynamic_voxels=DYNAMIC_VOXELS,
    sassd=SASSD,
    pointpillars=KITTI,
    second=VOXELS,
)
SPREAD_KINDS = 'pointpillars', 'second'


def write_config(folder, kind='kitti', words=()):
    """Write the config, with words of it replaced; return its path."""
    words = {**(SPREAD_TEST if kind in SPREAD_KINDS else {}), **dict(words)}
    path = Path(folder) / f'tiny_{kind}.py'
    path.write_text(replaced_words(HEAD + KINDS[kind] + DATA, words))
    return str(path)


def seeded_model(family, cfg):
    """Return the model with weights and statistics of a seed; scores of cells without points are low."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.common.lidar_parts import parts_of

    model, generator = family.build(cfg), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif name.endswith(('running_mean', '.bias')):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            elif value.dim() > 1:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / fan) ** 0.5)
        head, encoder = parts_of(model).head, parts_of(model).voxel_encoder
        for layer in (*getattr(encoder, 'pfn_layers', ()), *getattr(encoder, 'vfe_layers', ())):
            linear = layer[0] if isinstance(layer, torch.nn.Sequential) else layer.linear
            linear.weight.mul_(0.05 if linear.in_features == encoder.in_channels else 1)
        if hasattr(parts_of(model).middle_encoder, 'conv_input'):
            parts_of(model).middle_encoder.conv_input[0].weight.mul_(0.05)
        for branch in getattr(head, 'heads', [head]):
            branch.conv_cls.weight.mul_(2)
            branch.conv_reg.weight.mul_(0.5)
    return model


@made_once
def exported(kind='kitti'):
    """Return (detector, folder of graphs, config, checkpoint), made once per process."""
    from mmdeploy_ext.base.config import load_config
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.families.common.lidar_parts import parts_of

    register()
    folder = Path(tempfile.mkdtemp(prefix=f'tiny_{kind}_'))
    config = write_config(folder, kind)
    cfg = load_config(config)
    model = seeded_model(find_family(cfg), cfg)
    if kind in SPREAD_KINDS:
        head = parts_of(model).head
        lasts = {
            getattr(head, name): (deviation[: head.box_code_size], mean)
            for name, (deviation, mean) in SPREAD.items()
        }
        reference = find_family(cfg).reference(model.eval())
        spread_out(lasts, lambda: reference.step(Sweep(sweep(0, 1200))))
    return exported_of(config, folder / 'tiny.pth', model.state_dict(), CLASSES)
