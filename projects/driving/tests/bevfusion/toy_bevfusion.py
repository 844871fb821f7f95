"""A small BEVFusion: its config, weights that find things, and its files."""

import functools
import pprint
import tempfile
from pathlib import Path

import torch

from mm2onnx_driving.bevfusion import center_head, transfusion_head
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector_files import export_files
from projects.configs.nuscenes_fusion import test_pipeline
from toy_atss import REPO
from toy_centerpoint import register

register()
for module in (center_head, transfusion_head):
    module.circle_nms = getattr(module.circle_nms, 'py_func', module.circle_nms)

PUBLISHED = f'{REPO}/projects/configs/BEVFusion/bevfusion_camera_lidar_r50_nus.py'
RANGE, VOXEL = [-19.2, -16.0, -5.0, 19.2, 16.0, 3.0], [0.2, 0.2, 0.2]
X_BOUND, Y_BOUND, SIZE = [-19.2, 19.2, 0.8], [-16.0, 16.0, 0.8], [64, 96]
CHANGES = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(depth=18, base_channels=16, stem_channels=16),
            neck=dict(in_channels=[32, 64, 128], out_channels=32),
            vtransform=dict(
                in_channels=32, out_channels=16, image_size=SIZE, feature_size=[8, 12], xbound=X_BOUND,
                ybound=Y_BOUND, dbound=[1.0, 21.0, 1.0],
            ),
        ),
        lidar=dict(
            voxelize=dict(point_cloud_range=RANGE, voxel_size=VOXEL),
            backbone=dict(
                sparse_shape=[192, 160, 41], output_channels=32, base_channels=8,
                encoder_channels=((8, 8, 16), (16, 16, 16), (16, 16, 32), (32, 32)),
            ),
        ),
    ),
    fuser=dict(in_channels=[16, 64], out_channels=32),
    decoder=dict(
        backbone=dict(in_channels=32, out_channels=[16, 32], layer_nums=[1, 1]),
        neck=dict(in_channels=[16, 32], out_channels=[32, 32]),
    ),
    heads=dict(
        object=dict(
            num_proposals=40, in_channels=64, hidden_channel=32, num_heads=4, ffn_channel=32,
            train_cfg=dict(voxel_size=VOXEL, point_cloud_range=RANGE, grid_size=[192, 160, 41]),
            test_cfg=dict(voxel_size=VOXEL[:2], pc_range=RANGE[:2], grid_size=[192, 160, 41]),
            bbox_coder=dict(
                voxel_size=VOXEL[:2], pc_range=RANGE[:2],
                post_center_range=[-20.0, -20.0, -9.0, 20.0, 20.0, 9.0],
            ),
        )
    ),
)  # fmt: skip
IMAGE = dict(final_dim=SIZE, resize_lim=[0.08, 0.08], bot_pct_lim=[0.0, 0.0])


def write_config(path, **more):
    """Write the config; more is what is merged into its model."""
    no_cameras = more.get('encoders', {}).get('camera', IMAGE) is None
    pipeline = test_pipeline(None if no_cameras else IMAGE, 0)
    text = f'_base_ = [{PUBLISHED!r}]\nmodel = {pprint.pformat(dict(CHANGES, **more))}\n'
    path.write_text(text + f'data = dict(test=dict(_delete_=True, type="Missing", pipeline={pipeline!r}))\n')
    return str(path)


ALONE = dict(
    camera=dict(
        encoders=dict(camera=dict(vtransform=dict(type='LSSTransform', out_channels=32)), lidar=None),
        fuser=None,
    ),
    lidar=dict(encoders=dict(camera=None), fuser=None, decoder=dict(backbone=dict(in_channels=64))),
)
"""Sensor -> what makes a model of it alone."""
CENTERS = dict(
    decoder=dict(
        backbone=dict(
            _delete_=True, type='GeneralizedResNet', in_channels=32,
            blocks=[[1, 16, 2], [1, 32, 2], [1, 32, 1]],
        ),
        neck=dict(
            _delete_=True, type='LSSFPN', in_indices=[-1, 0], in_channels=[32, 16], out_channels=32,
            scale_factor=2,
        ),
    ),
    heads=dict(
        object=dict(
            _delete_=True, type='CenterHead', in_channels=32, share_conv_channel=16,
            tasks=[['car'], ['truck', 'construction_vehicle'], ['bus', 'trailer'], ['barrier'],
                   ['motorcycle', 'bicycle'], ['pedestrian', 'traffic_cone']],
            common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
            bbox_coder=dict(
                type='CenterPointBBoxCoder', pc_range=RANGE, voxel_size=VOXEL[:2], out_size_factor=8,
                post_center_range=[-20.0, -20.0, -9.0, 20.0, 20.0, 9.0], max_num=400, score_threshold=0.1,
            ),
            separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
            loss_cls=dict(type='GaussianFocalLoss', reduction='mean'),
            loss_bbox=dict(type='L1Loss', reduction='mean', loss_weight=0.25),
            train_cfg=dict(
                point_cloud_range=RANGE, grid_size=[192, 160, 1], voxel_size=VOXEL, out_size_factor=8,
                dense_reg=1, gaussian_overlap=0.1, max_objs=50, min_radius=2, code_weights=[1.0] * 10,
            ),
            test_cfg=dict(
                post_center_limit_range=[-20.0, -20.0, -9.0, 20.0, 20.0, 9.0], score_threshold=0.3,
                min_radius=[4, 12, 10, 4, 0.85, 0.175], pre_max_size=300, post_max_size=200, nms_thr=0.2,
                nms_type=['circle', 'rotate', 'rotate', 'circle', 'rotate', 'rotate'],
                nms_scale=[[1.0], [1.0, 1.5], [1.0, 1.0], [1.0], [1.0, 1.0], [2.5, 4.0]],
            ),
        )
    ),
)  # fmt: skip
"""What makes a model with CenterPoint's head of one with cameras alone."""


def merged(one, other):
    """Return a dict with the values of another, level by level."""
    both = dict(one)
    for key, value in other.items():
        nested = isinstance(value, dict) and isinstance(one.get(key), dict) and '_delete_' not in value
        both[key] = merged(one[key], value) if nested else value
    return both


def alone(sensor):
    """Return the changes of the model for one sensor; 'centers' is of cameras with CenterPoint's head."""
    if sensor == 'centers':
        return merged(alone('camera'), CENTERS)
    return merged(CHANGES, ALONE[sensor])


def seeded(cfg):
    """Return the model with weights whose heat map has peaks of several classes."""
    torch.manual_seed(0)
    model = find_family(cfg).build(cfg).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        heads = model.heads['object']
        if 'camera' in model.encoders:
            transform = model.encoders['camera']['vtransform']
            last = (
                transform.depthnet
                if isinstance(transform.depthnet, torch.nn.Conv2d)
                else transform.depthnet[6]
            )
            last.weight[: transform.D].mul_(10)
            transform.downsample[7].weight.mul_(20)  # the cameras count as much as the LiDAR
            if transform.uses_points:
                transform.dtransform[6].weight.mul_(5)
        if hasattr(heads, 'task_heads'):
            return _with_centers(model)
        if model.fuser is None:
            heads.prediction_heads[0]['heatmap'][1].bias.add_(3)
        else:
            model.fuser[0].weight[:, : transform.C].mul_(5)
        heads.heatmap_head[1].weight.mul_(20)
        heads.heatmap_head[1].bias[8:].add_(1)  # of classes whose every cell may be a query
        for layers in heads.prediction_heads[0].values():
            layers[1].weight.mul_(4)
    return model


def _with_centers(model):
    """Return a model with CenterPoint's head whose boxes are of many places, sizes and classes."""
    heads = model.heads['object']
    for module in [*model.decoder.modules(), *heads.modules()]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()  # what follows the cameras gets the statistics of a map, or all cells are alike
    heads(model.joined([2 * torch.randn(2, 32, 24, 24).relu()]))
    for task in heads.task_heads:
        for layers in (task.heatmap, task.reg, task.height, task.dim, task.rot, task.vel):
            layers[1].weight.mul_(2)
        task.dim[1].weight.mul_(0.2)
        task.dim[1].bias.add_(0.7)
    return model.eval()


def toy(folder, classes=(), **more):
    """Return the detector of the toy; its checkpoint has the names `classes`. More as of `write_config`."""
    config = write_config(folder / 'm.py', **more)
    weights, meta = seeded(load_config(config)).state_dict(), dict(CLASSES=classes) if classes else {}
    torch.save(dict(meta=meta, state_dict=weights), folder / 'm.pth')
    return detectors.load(config, str(folder / 'm.pth'))


@functools.cache
def whole():
    """Return the detector of the toy with cameras and LiDAR, made once, and two frames of other rigs."""
    detector = toy(Path(tempfile.mkdtemp(prefix='bevfusion_')))
    return detector, list(detector.family.data.generated_sweeps(detector.rule, 2))


def export(detector, folder, **options):
    """Return the paths of the files of an export."""
    chosen = detectors.resolve_opset(detector.family.choose(opset=0, **options), detector.model)
    export_files(detector, chosen, str(folder))
    names = contract_of(detector.family, chosen).files
    return [str(path) for path in (folder / f'{name}.onnx' for name in names) if path.is_file()]
