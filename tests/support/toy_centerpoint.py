"""A CenterPoint of a few thousand weights on a grid of 32 x 32 x 8 voxels, exported once; sweeps for it."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from made_once import made_once
from mmdeploy_ext.runtime.frames import Sweep
from toy_spread import spread_out

RANGE = [-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]
WIDTH = 5
CONFIG = """
custom_imports = dict(imports=['mmdeploy_ext.families.mmdet3d_plugin'], allow_failed_imports=False)
norm = dict(type='BN', eps=1e-3, momentum=0.01)
pc_range = [-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]
model = dict(
    type='CenterPoint',
    pts_voxel_layer=dict(max_num_points=4, voxel_size=[0.4, 0.4, 0.4], max_voxels=(500, 600),
                         point_cloud_range=pc_range),
    pts_voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
    pts_middle_encoder=dict(
        type='SparseEncoder', in_channels=5, sparse_shape=[9, 40, 32], base_channels=4, output_channels=8,
        encoder_channels=((4, 4, 8), (8, 8)), encoder_paddings=((0, 0, 1), (0, 0)), block_type='basicblock'),
    pts_backbone=dict(type='SECOND', in_channels=16, out_channels=[8, 16], layer_nums=[1, 1],
                      layer_strides=[1, 2], norm_cfg=norm, conv_cfg=dict(type='Conv2d', bias=False)),
    pts_neck=dict(type='SECONDFPN', in_channels=[8, 16], out_channels=[8, 8], upsample_strides=[1, 2],
                  norm_cfg=norm, upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterHead', in_channels=16, share_conv_channel=8,
        tasks=[dict(num_class=1, class_names=['car']), dict(num_class=2, class_names=['bus', 'truck'])],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(type='CenterPointBBoxCoder', pc_range=pc_range[:2],
                        post_center_range=[-9.0, -9.0, -9.0, 9.0, 9.0, 9.0], max_num=40, score_threshold=0.05,
                        out_size_factor=2, voxel_size=[0.4, 0.4], code_size=9),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3, head_conv=8)),
    test_cfg=dict(pts=dict(
        post_center_limit_range=[-9.0, -9.0, -9.0, 9.0, 9.0, 9.0], min_radius=[4, 12], score_threshold=0.05,
        nms_type='rotate', pre_max_size=40, post_max_size=20, nms_thr=0.2)))
load = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)
data = dict(test=dict(type='NuScenesDataset', classes=['car', 'bus', 'truck'],
                      pipeline=[load, dict(type='DefaultFormatBundle3D', class_names=[], with_label=False),
                                dict(type='Collect3D', keys=['points'])]))
"""


DCN_HEAD = {
    "type='SeparateHead'": "type='DCNSeparateHead', dcn_config=dict(type='DCN', in_channels=8, "
    'out_channels=8, kernel_size=3, padding=1, groups=4)'
}
"""Words that give the toy the head of CenterPoint's deformable variants."""


PILLARS = {
    'voxel_size=[0.4, 0.4, 0.4], max_voxels': 'voxel_size=[0.4, 0.4, 3.2], max_voxels',
    "dict(type='HardSimpleVFE', num_features=5)": "dict(type='PillarFeatureNet', in_channels=5, "
    'feat_channels=[16], voxel_size=(0.4, 0.4, 3.2), point_cloud_range=pc_range, legacy=False)',
    "type='SparseEncoder', in_channels=5, sparse_shape=[9, 40, 32], base_channels=4, output_channels=8,\n"
    '        encoder_channels=((4, 4, 8), (8, 8)), encoder_paddings=((0, 0, 1), (0, 0)), '
    "block_type='basicblock'": "type='PointPillarsScatter', in_channels=16, output_shape=(40, 32)",
    'layer_strides=[1, 2], norm_cfg': 'layer_strides=[2, 2], norm_cfg',
}
"""Words that make the toy one of pillars."""
NODE = {
    **PILLARS,
    'max_num_points=4': 'max_num_points=32',
    "dict(type='HardSimpleVFE', num_features=5)": "dict(type='PillarFeatureNet', in_channels=4, "
    'feat_channels=[32], voxel_size=(0.4, 0.4, 3.2), point_cloud_range=pc_range, legacy=False)',
    "type='SparseEncoder', in_channels=5, sparse_shape=[9, 40, 32], base_channels=4, output_channels=8,\n"
    '        encoder_channels=((4, 4, 8), (8, 8)), encoder_paddings=((0, 0, 1), (0, 0)), '
    "block_type='basicblock'": "type='PointPillarsScatter', in_channels=32, output_shape=(48, 32)",
    'pc_range = [-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]': 'pc_range = [-6.4, -9.6, -1.6, 6.4, 9.6, 1.6]',
    "type='SECOND', in_channels=16": "type='SECOND', in_channels=32",
    "[dict(num_class=1, class_names=['car']), dict(num_class=2, class_names=['bus', 'truck'])]": '[dict('
    "num_class=3, class_names=['car', 'bus', 'pedestrian'])]",
    'min_radius=[4, 12]': 'min_radius=[0.25]',
    "nms_type='rotate'": "nms_type='circle'",
    'max_num=40, score_threshold=0.05': 'max_num=256, score_threshold=0.5',
    'post_max_size=20': 'post_max_size=256',
    "classes=['car', 'bus', 'truck']": "classes=['car', 'bus', 'pedestrian']",
    'load_dim=5, use_dim=5': 'load_dim=5, use_dim=[0, 1, 2, 4]',
}
"""Words that make the toy one that lidar_centerpoint takes."""
OBLONG = {
    'pc_range = [-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]': 'pc_range = [-6.4, -9.6, -1.6, 6.4, 9.6, 1.6]',
    'max_num_points=4, voxel_size=[0.4, 0.4, 0.4]': 'max_num_points=4, voxel_size=[0.4, 0.3, 0.4]',
    'sparse_shape=[9, 40, 32]': 'sparse_shape=[9, 64, 32]',
    'out_size_factor=2, voxel_size=[0.4, 0.4]': 'out_size_factor=2, voxel_size=[0.4, 0.3]',
    'post_center_range=[-9.0, -9.0, -9.0, 9.0, 9.0, 9.0], max_num=40': 'post_center_range=[-6.0, -9.0, -1.1, '
    '5.8, 8.8, 0.5], max_num=160',
    'limit_range=[-9.0, -9.0, -9.0, 9.0, 9.0, 9.0], min_radius=[4, 12]': 'limit_range=[-5.6, -8.6, -0.9, '
    '5.4, 8.4, 0.3], min_radius=[1, 3]',
    'pre_max_size=40, post_max_size=20': 'pre_max_size=120, post_max_size=60',
}
"""Words that make a toy of oblong cells whose limits all drop something; its scores are of all sizes."""
CIRCLE = {**OBLONG, "nms_type='rotate'": "nms_type='circle'"}
VARIANTS = dict(
    sparse={},
    deformable=DCN_HEAD,
    pillars=PILLARS,
    node=NODE,
    oblong=OBLONG,
    circle=CIRCLE,
)


ENGINE = dict(engine='OnnxRuntimeBackend')


def register():
    """Import the plugin; circle NMS runs uncompiled, for numba takes four seconds in each process."""
    from mmdet3d.models.dense_heads import centerpoint_head

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    centerpoint_head.circle_nms = getattr(centerpoint_head.circle_nms, 'py_func', centerpoint_head.circle_nms)


def write_config(folder, words=()):
    """Write the config, with words of it replaced; return its path."""
    path = Path(folder) / 'tiny_centerpoint.py'
    path.write_text(replaced_words(CONFIG, dict(words)))
    return str(path)


def sweep(seed, count=400, spread=1.0):
    """Return (count, 5) points in clusters, some of them out of range."""
    random = np.random.default_rng(seed)
    centres = random.uniform(RANGE[:3], RANGE[3:], (12, 3)) * spread
    xyz = centres[random.integers(0, 12, count)] + random.normal(0, 0.5, (count, 3))
    values = [xyz, random.uniform(0, 80, (count, 1)), random.integers(0, 32, (count, 1))]
    return np.concatenate(values, axis=1).astype(np.float32)


def sweeps(count, first=0):
    """Return sweeps of growing numbers of points."""
    return [Sweep(sweep(seed, 300 + 100 * seed), f'sweep {seed}') for seed in range(first, first + count)]


def paths_of(folder, names=('backbone', 'head')):
    """Return the paths of the files of an export."""
    return [str(Path(folder) / f'{name}.onnx') for name in names]


def exported_of(config, checkpoint, state_dict, classes, **chosen):
    """Write a checkpoint, load it and export; return (detector, folder of graphs, config, checkpoint)."""
    from mmdeploy_ext.families import detector as detectors
    from mmdeploy_ext.families.detector_files import export_files

    torch.save(dict(state_dict=state_dict, meta=dict(CLASSES=classes)), checkpoint)
    detector, folder = detectors.load(config, str(checkpoint)), checkpoint.parent / 'graphs'
    options = detectors.resolve_opset(detector.family.choose(opset=0, **chosen), detector.model)
    export_files(detector, options, str(folder))
    return detector, folder, config, str(checkpoint)


def replaced_words(text, words):
    """Return a config with words of it replaced."""
    for old, new in words.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def seeded_model(family, cfg):
    """Return the model with weights and statistics of a seed, which finds something everywhere."""
    model = family.build(cfg)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif name.endswith('running_mean'):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            elif value.dim() > 1:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / fan) ** 0.5)
        for name, value in model.named_parameters():  # after what is above: what it draws stays as it was
            if name.endswith('conv.bias') or (name.endswith('.bias') and 'task_heads' in name):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        scaled = getattr(model.pts_middle_encoder, 'conv_input', None)  # intensities are large
        first = scaled[0].weight if scaled else model.pts_voxel_encoder.pfn_layers[0].linear.weight
        first.mul_(0.05)
        for head in model.pts_bbox_head.task_heads:  # boxes of 1.6 m on cells of 0.8 m: neighbours overlap
            getattr(head, 'task_head', head).dim[-1].bias.add_(0.5)
    return model


SPREAD = dict(
    reg=([0.3], [0.5]),
    height=([0.4], [-0.3]),
    dim=([0.3], [0.5, 0.1, 0.3]),
    rot=([1.0], [0.0]),
    vel=([3.0], [0.0]),
    heatmap=([2.0], [-4.0]),
)
"""Output of the head -> deviations and means of its channels, see `toy_spread.spread_out`."""


@made_once
def exported(variant='sparse', contract='deploy'):
    """Return (detector, folder of graphs, config, checkpoint), made once per process."""
    from mmdeploy_ext.base.config import load_config
    from mmdeploy_ext.families.base import find_family

    register()
    folder = Path(tempfile.mkdtemp(prefix='tiny_centerpoint_'))
    config = write_config(folder, words=VARIANTS[variant])
    cfg = load_config(config)
    model = seeded_model(find_family(cfg), cfg)
    if variant in ('oblong', 'circle'):
        heads, reference = model.pts_bbox_head.task_heads, find_family(cfg).reference(model.eval())
        lasts = {getattr(head, name)[-1]: values for head in heads for name, values in SPREAD.items()}
        spread_out(lasts, lambda: reference.step(Sweep(sweep(0, 1200)[:, : reference.width])))
    names = 'car', 'bus', 'pedestrian' if 'node' in variant else 'truck'
    return exported_of(config, folder / 'tiny.pth', model.state_dict(), names, contract=contract)
