"""A tiny StreamPETR and one made-up batch for it: 6 cameras, 32 x 96 px images, 16 + 8 queries, 32 channels.

Every test of the family that needs a model small enough for two CPU cores builds it from here.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from toy_rig import T0

NUM_CAMS = 6
HEIGHT, WIDTH = 32, 96
STRIDE = 16
EMBED = 32
NUM_QUERY, NUM_PROPAGATED, MEMORY_LEN = 16, 8, 24
NUM_CLASSES = 10
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
POSITION_RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def backbone() -> dict:
    """Return a ResNet-18 of 8 base channels: 32 channels at stride 16, 64 at stride 32."""
    return dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    )


def pts_head(num_layers: int = 2, dropout: float = 0.0, **changes) -> dict:
    """Return the StreamPETR head, without dropout, so that runs repeat."""
    attention = [
        dict(type='MultiheadAttention', embed_dims=EMBED, num_heads=4, dropout=dropout),
        dict(type='PETRMultiheadAttention', embed_dims=EMBED, num_heads=4, dropout=dropout),
    ]
    layer = dict(
        type='PETRTemporalDecoderLayer',
        attn_cfgs=attention,
        feedforward_channels=2 * EMBED,
        ffn_dropout=dropout,
        with_cp=False,
        operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
    )
    decoder = dict(
        type='PETRTransformerDecoder',
        return_intermediate=True,
        num_layers=num_layers,
        transformerlayers=layer,
        post_norm_cfg=dict(type='LN'),
    )
    head = dict(
        type='StreamPETRHead',
        num_classes=NUM_CLASSES,
        in_channels=EMBED,
        embed_dims=EMBED,
        stride=STRIDE,
        num_query=NUM_QUERY,
        memory_len=MEMORY_LEN,
        topk_proposals=NUM_PROPAGATED,
        num_propagated=NUM_PROPAGATED,
        with_ego_pos=True,
        match_with_velo=False,
        scalar=2,
        noise_scale=1.0,
        dn_weight=1.0,
        split=0.75,
        LID=True,
        with_position=True,
        position_range=POSITION_RANGE,
        code_weights=[2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        transformer=dict(type='PETRTemporalTransformer', decoder=decoder),
        bbox_coder=dict(
            type='NMSFreeCoder',
            post_center_range=POSITION_RANGE,
            pc_range=PC_RANGE,
            max_num=20,
            voxel_size=[0.2, 0.2, 8],
            num_classes=NUM_CLASSES,
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=0.25),
        loss_iou=dict(type='GIoULoss', loss_weight=0.0),
    )
    return {**head, **changes}


def model_cfg(num_layers: int = 2, head: dict | None = None, **changes) -> dict:
    """Return the config of a toy Petr3D; `head` changes keys of the 3D head, `changes` of the detector."""
    model = dict(
        type='Petr3D',
        use_grid_mask=False,
        stride=STRIDE,
        position_level=0,
        img_backbone=backbone(),
        img_neck=dict(type='CPFPN', in_channels=[32, 64], out_channels=EMBED, num_outs=2),
        img_roi_head=dict(type='FocalHead', num_classes=NUM_CLASSES, in_channels=EMBED),
        pts_bbox_head=pts_head(num_layers, **(head or {})),
    )
    return {**model, **changes}


def build(seed: int = 0, **options):
    """Return a seeded toy Petr3D; options as of `model_cfg`."""
    from mmcv import ConfigDict
    from mmdet3d.models import build_model

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.upstream.models import catalogue

    torch.manual_seed(seed)
    model_config = ConfigDict(model_cfg(**options))
    catalogue.register_named(dict(model=model_config))  # a config of PETR has another detector of this type
    model = build_model(model_config)
    model.init_weights()
    return model


def rig() -> dict[str, torch.Tensor]:
    """Return intrinsics, extrinsics (LiDAR to camera), lidar2img (N, 4, 4); cameras 60 degrees apart."""
    intrinsics = np.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = 60.0
    intrinsics[0, 2], intrinsics[1, 2] = WIDTH / 2, HEIGHT / 2
    extrinsics = np.stack([_lidar_to_camera(-math.radians(60.0 * i)) for i in range(NUM_CAMS)])
    stacked = np.repeat(intrinsics[None], NUM_CAMS, 0)
    to_float = {'intrinsics': stacked, 'extrinsics': extrinsics, 'lidar2img': stacked @ extrinsics}
    return {key: torch.from_numpy(value).float() for key, value in to_float.items()}


def _lidar_to_camera(yaw: float) -> np.ndarray:
    """Return the 4x4 matrix of a camera 1.5 m up that looks along `yaw`; x right, y down, z forward."""
    forward = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    rotation = np.stack([np.cross(down, forward), down, forward])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ np.array([0.0, 0.0, -0.3])
    return matrix


def poses(num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ego_pose and its inverse (T, 4, 4) of a car that drives 2 m per frame and turns a little."""
    matrices = []
    for t in range(num_frames):
        yaw = 0.05 * t
        matrices.append(
            [
                [math.cos(yaw), -math.sin(yaw), 0, 600 + 2.0 * t],
                [math.sin(yaw), math.cos(yaw), 0, 1600 + 0.1 * t],
                [0, 0, 1, 1.8],
                [0, 0, 0, 1],
            ]
        )
    pose = torch.tensor(matrices, dtype=torch.float64)
    return pose.float(), torch.linalg.inv(pose).float()


def drive(num_frames: int, seed: int = 0, first_frame: int = 0) -> list[dict]:
    """Return frames of one scene, each a dict of tensors with a leading axis of 1, and `img_metas` [1]."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    rng = np.random.default_rng(seed)
    steps = range(first_frame, first_frame + num_frames)
    pose, inverse = poses(first_frame + num_frames)
    meta = dict(
        pad_shape=[(HEIGHT, WIDTH, 3)] * NUM_CAMS,
        img_shape=[(HEIGHT, WIDTH, 3)] * NUM_CAMS,
        box_type_3d=LiDARInstance3DBoxes,
        scene_token='scene0',
    )
    shape = (1, NUM_CAMS, 3, HEIGHT, WIDTH)
    return [
        dict(
            {key: value[None] for key, value in rig().items()},
            img_metas=[dict(meta, sample_idx=f'0_{t}')],
            img=torch.from_numpy(rng.standard_normal(shape)).float(),
            timestamp=torch.tensor([T0 + 0.5 * t], dtype=torch.float64),
            img_timestamp=torch.full((1, NUM_CAMS), T0 + 0.5 * t, dtype=torch.float64),
            ego_pose=pose[t : t + 1],
            ego_pose_inv=inverse[t : t + 1],
            prev_exists=torch.tensor([float(t > 0)]),
        )
        for t in steps
    ]


def test_inputs(frame: int = 0, seed: int = 0, scene_token: str = 'scene0') -> dict:
    """Return one frame as the test loader gives it: every value in the list of its one augmentation."""
    (one,) = drive(1, seed, frame)
    keys = ('lidar2img', 'intrinsics', 'extrinsics', 'timestamp', 'img_timestamp', 'ego_pose', 'ego_pose_inv')
    data = {key: [[one[key][0]]] for key in keys}
    metas = [[dict(one['img_metas'][0], scene_token=scene_token)]]
    return {**data, 'img': [one['img']], 'img_metas': metas}


test_inputs.__test__ = False  # not a test, whatever its name says to pytest
