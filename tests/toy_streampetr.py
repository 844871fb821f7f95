"""A tiny StreamPETR and one made-up batch for it: 6 cameras, 32 x 96 px images, 16 + 8 queries, 32 channels.

Every test of the family that needs a model small enough for two CPU cores builds it from here.
"""

from __future__ import annotations

import math

import numpy as np
import torch

NUM_CAMS = 6
HEIGHT, WIDTH = 32, 96
STRIDE = 16
EMBED = 32
NUM_QUERY, NUM_PROPAGATED, MEMORY_LEN = 16, 8, 24
NUM_CLASSES = 10
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
POSITION_RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
T0 = 1533151607.0


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


def roi_head(**changes) -> dict:
    """Return the 2D auxiliary head with the losses and costs of the released configs."""
    assigner = dict(
        type='HungarianAssigner2D',
        cls_cost=dict(type='FocalLossCost', weight=2.0),
        reg_cost=dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        iou_cost=dict(type='IoUCost', iou_mode='giou', weight=2.0),
        centers2d_cost=dict(type='BBox3DL1Cost', weight=10.0),
    )
    head = dict(
        type='FocalHead',
        num_classes=NUM_CLASSES,
        in_channels=EMBED,
        stride=STRIDE,
        loss_cls2d=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=2.0),
        loss_centerness=dict(type='GaussianFocalLoss', reduction='mean', loss_weight=1.0),
        loss_bbox2d=dict(type='L1Loss', loss_weight=5.0),
        loss_iou2d=dict(type='GIoULoss', loss_weight=2.0),
        loss_centers2d=dict(type='L1Loss', loss_weight=10.0),
        train_cfg=dict(assigner2d=assigner),
    )
    return {**head, **changes}


def pts_head(num_layers: int = 2, dropout: float = 0.0, **changes) -> dict:
    """Return the StreamPETR head; denoising with 2 groups, no dropout, so that runs repeat."""
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


def pts_train_cfg() -> dict:
    """Return the matching costs of the released configs."""
    return dict(
        assigner=dict(
            type='HungarianAssigner3D',
            cls_cost=dict(type='FocalLossCost', weight=2.0),
            reg_cost=dict(type='BBox3DL1Cost', weight=0.25),
            iou_cost=dict(type='IoUCost', weight=0.0),
            pc_range=PC_RANGE,
        )
    )


def model_cfg(num_layers: int = 2, frames: int = 1, head: dict | None = None, **changes) -> dict:
    """Return the config of a toy Petr3D; `head` changes keys of the 3D head, `changes` of the detector."""
    model = dict(
        type='Petr3D',
        num_frame_head_grads=frames,
        num_frame_backbone_grads=frames,
        num_frame_losses=frames,
        use_grid_mask=False,
        stride=STRIDE,
        position_level=0,
        img_backbone=backbone(),
        img_neck=dict(type='CPFPN', in_channels=[32, 64], out_channels=EMBED, num_outs=2),
        img_roi_head=roi_head(),
        pts_bbox_head=pts_head(num_layers, **(head or {})),
        train_cfg=dict(pts=pts_train_cfg()),
    )
    return {**model, **changes}


def build(seed: int = 0, **options):
    """Return a seeded toy Petr3D in training mode; options as of `model_cfg`."""
    from mmcv import ConfigDict
    from mmdet3d.models import build_model

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.models import catalogue

    torch.manual_seed(seed)
    model_config = ConfigDict(model_cfg(**options))
    catalogue.register_named(dict(model=model_config))  # a config of PETR has another detector of this type
    model = build_model(model_config)
    model.init_weights()
    return model.train()


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


def boxes_3d(num: int, rng: np.random.Generator):
    """Return `num` boxes (x, y, z bottom, 3 sizes, yaw, vx, vy) inside the range, and their labels (num,)."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    low, high = np.array([-40, -40, -3, 0.6, 0.6, 1, -3, -5, -5]), np.array([40, 40, 0, 4, 2, 2, 3, 5, 5])
    values = torch.from_numpy(rng.uniform(low, high, (num, 9))).float()
    labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, num))
    return LiDARInstance3DBoxes(values, box_dim=9), labels


def boxes_2d(num: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Return boxes (num, 4) xyxy px, labels, centres (num, 2) px and depths (num,) m of one camera."""
    top_left = rng.uniform((0, 0), (WIDTH - 30, HEIGHT - 16), (num, 2))
    size = rng.uniform((8, 6), (30, 16), (num, 2))
    boxes = np.concatenate([top_left, top_left + size], 1)
    values = [boxes, top_left + size / 2, rng.uniform(2, 50, num)]
    boxes, centers, depths = (torch.from_numpy(value).float() for value in values)
    return boxes, torch.from_numpy(rng.integers(0, NUM_CLASSES, num)), centers, depths


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


def frame_annotations(rng: np.random.Generator, counts: tuple[int, ...], numbers_2d: tuple[int, ...]) -> dict:
    """Return the annotations of one sample: lists over its frames, those in pixels also over its cameras."""
    boxes, labels = zip(*(boxes_3d(count, rng) for count in counts), strict=True)
    cameras = [[boxes_2d(number, rng) for number in numbers_2d] for _ in counts]
    names = ('gt_bboxes', 'gt_labels', 'centers2d', 'depths')
    flat = {name: [[camera[i] for camera in frame] for frame in cameras] for i, name in enumerate(names)}
    return {'gt_bboxes_3d': list(boxes), 'gt_labels_3d': list(labels), **flat}


def batch(
    counts: tuple[tuple[int, ...], ...] = ((3,), (5,)),
    numbers_2d: tuple[int, ...] = (2, 0, 1, 3, 0, 1),
    seed: int = 0,
    first_frame: int = 0,
) -> dict:
    """Return one training batch as the data loader gives it to the detector.

    Args:
        counts: 3D boxes per sample and frame; its shape is (B, T).
        numbers_2d: 2D boxes per camera.
        seed: of the images and the boxes.
        first_frame: index in the drive of the first frame; 0 makes `prev_exists` 0 there.
    """
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    rng = np.random.default_rng(seed)
    size, frames = len(counts), len(counts[0])
    samples = [frame_annotations(rng, sample, numbers_2d) for sample in counts]
    steps = range(first_frame, first_frame + frames)
    pose, inverse = (value[first_frame:] for value in poses(first_frame + frames))
    meta = dict(
        pad_shape=[(HEIGHT, WIDTH, 3)] * NUM_CAMS,
        img_shape=[(HEIGHT, WIDTH, 3)] * NUM_CAMS,
        box_type_3d=LiDARInstance3DBoxes,
    )
    data = {key: [sample[key] for sample in samples] for key in samples[0]}
    data['img_metas'] = [
        [
            dict(
                meta,
                scene_token=f'scene{b}',
                sample_idx=f'{b}_{t}',
                gt_bboxes_3d=sample['gt_bboxes_3d'][i],
                gt_labels_3d=sample['gt_labels_3d'][i],
            )
            for i, t in enumerate(steps)
        ]
        for b, sample in enumerate(samples)
    ]
    shape = (size, frames, NUM_CAMS, 3, HEIGHT, WIDTH)
    data['img'] = torch.from_numpy(rng.standard_normal(shape)).float()
    data.update({key: value.expand(size, frames, NUM_CAMS, 4, 4).clone() for key, value in rig().items()})
    data['timestamp'] = torch.tensor([T0 + 0.5 * t for t in steps], dtype=torch.float64).repeat(size, 1)
    data['img_timestamp'] = data['timestamp'][..., None].repeat(1, 1, NUM_CAMS)
    data['ego_pose'], data['ego_pose_inv'] = (m.expand(size, frames, 4, 4).clone() for m in (pose, inverse))
    data['prev_exists'] = torch.tensor([float(t > 0) for t in steps]).repeat(size, 1)
    return data


def test_inputs(frame: int = 0, seed: int = 0, scene_token: str = 'scene0') -> dict:
    """Return one frame as the test loader gives it: every value in the list of its one augmentation."""
    one = batch(((0,),), seed=seed, first_frame=frame)
    keys = ('lidar2img', 'intrinsics', 'extrinsics', 'timestamp', 'img_timestamp', 'ego_pose', 'ego_pose_inv')
    meta = {key: value for key, value in one['img_metas'][0][0].items() if not key.startswith('gt_')}
    data = {key: [[one[key][0, 0]]] for key in keys}
    return {**data, 'img': [one['img'][:, 0]], 'img_metas': [[dict(meta, scene_token=scene_token)]]}


test_inputs.__test__ = False  # not a test, whatever its name says to pytest
