"""The `data` section of streaming configs: the pipelines differ in the image size alone."""

from typing import Any

CLASS_NAMES = [
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer',
    'barrier', 'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone',
]  # fmt: skip
IMG_NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
VOV_NORM = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
FRAME_KEYS = [
    'lidar2img', 'intrinsics', 'extrinsics', 'timestamp', 'img_timestamp', 'ego_pose', 'ego_pose_inv',
]  # fmt: skip
BOX_KEYS = ['gt_bboxes_3d', 'gt_labels_3d', 'gt_bboxes', 'gt_labels', 'centers2d', 'depths']
META_KEYS = [
    'filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
    'box_mode_3d', 'box_type_3d', 'img_norm_cfg', 'scene_token', 'sample_idx',
]  # fmt: skip
MODALITY = dict(use_lidar=False, use_camera=True, use_radar=False, use_map=False, use_external=True)


def image_augmentation(
    final_dim: tuple[int, int],
    resize_lim: tuple[float, float],
    source: tuple[int, int] = (900, 1600),
    bottom_cut: float = 0.0,
    rand_flip: bool = True,
) -> dict[str, Any]:
    """Return `data_aug_conf`; sizes are (height, width) px."""
    return dict(
        resize_lim=resize_lim,
        final_dim=final_dim,
        bot_pct_lim=(bottom_cut, bottom_cut),
        rot_lim=(0.0, 0.0),
        H=source[0],
        W=source[1],
        rand_flip=rand_flip,
    )


def train_pipeline(
    image: dict[str, Any], pc_range: list[float], rotation: float, scale: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return the steps of training; `rotation` in radians to either side, `scale` from and to."""
    return [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(
            type='LoadAnnotations3D',
            with_bbox_3d=True,
            with_label_3d=True,
            with_bbox=True,
            with_label=True,
            with_bbox_depth=True,
        ),
        dict(type='ObjectRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectNameFilter', classes=CLASS_NAMES),
        dict(type='ResizeCropFlipRotImage', data_aug_conf=image, training=True),
        dict(
            type='GlobalRotScaleTransImage',
            rot_range=[-rotation, rotation],
            translation_std=[0, 0, 0],
            scale_ratio_range=list(scale),
            reverse_angle=True,
            training=True,
        ),
        dict(type='NormalizeMultiviewImage', **IMG_NORM),
        dict(type='PadMultiViewImage', size_divisor=32),
        dict(type='PETRFormatBundle3D', class_names=CLASS_NAMES, collect_keys=[*FRAME_KEYS, 'prev_exists']),
        dict(
            type='Collect3D',
            keys=[*BOX_KEYS, 'img', 'prev_exists', *FRAME_KEYS],
            meta_keys=[*META_KEYS, 'gt_bboxes_3d', 'gt_labels_3d'],
        ),
    ]


def test_pipeline(image: dict[str, Any], norm: dict[str, Any] = IMG_NORM) -> list[dict[str, Any]]:
    """Return the steps of tests; `norm` is mean, std and `to_rgb`."""
    return [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='ResizeCropFlipRotImage', data_aug_conf=image, training=False),
        dict(type='NormalizeMultiviewImage', **norm),
        dict(type='PadMultiViewImage', size_divisor=32),
        dict(
            type='MultiScaleFlipAug3D',
            img_scale=(1333, 800),
            pts_scale_ratio=1,
            flip=False,
            transforms=[
                dict(
                    type='PETRFormatBundle3D',
                    class_names=CLASS_NAMES,
                    collect_keys=FRAME_KEYS,
                    with_label=False,
                ),
                dict(type='Collect3D', keys=['img', *FRAME_KEYS], meta_keys=META_KEYS),
            ],
        ),
    ]


def sections(
    shared: dict[str, Any],
    train: dict[str, Any],
    test: dict[str, Any],
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes_infos',
    samples_per_gpu: int = 4,
    workers_per_gpu: int = 4,
) -> dict[str, Any]:
    """Return a `data` section: keys of all data sets, and those of training and of tests.

    Args:
        shared: keys of all.
        train: more of training.
        test: more of tests and validation.
        root: of the data set.
        infos: info files are `<root><infos>_{train,val}.pkl`, as `tools/create_data.py` makes them.
        samples_per_gpu: batch size per process; of streams how many sequences are side by side.
        workers_per_gpu: loader processes.
    """
    shared = dict(shared, data_root=root, box_type_3d='LiDAR')
    test = dict(shared, ann_file=f'{root}{infos}_val.pkl', test_mode=True, **test)
    train = dict(shared, ann_file=f'{root}{infos}_train.pkl', test_mode=False, **train)
    return dict(
        samples_per_gpu=samples_per_gpu, workers_per_gpu=workers_per_gpu, train=train, val=test, test=test
    )


def stream_data(
    image: dict[str, Any],
    pc_range: list[float],
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes2d_temporal_infos',
    rotation: float = 0.3925,
    scale: tuple[float, float] = (0.95, 1.05),
    samples_per_gpu: int = 2,
    workers_per_gpu: int = 4,
    **train: Any,
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        image: of `image_augmentation`.
        pc_range: boxes outside are not learned.
        root, infos, samples_per_gpu, workers_per_gpu: of `sections`.
        rotation, scale: of `train_pipeline`.
        train: more keys of the training set.
    """
    shared = dict(type='CustomNuScenesDataset', classes=CLASS_NAMES, modality=MODALITY)
    own = dict(
        pipeline=train_pipeline(image, pc_range, rotation, scale),
        collect_keys=[*FRAME_KEYS, 'img', 'prev_exists', 'img_metas'],
        **{'seq_mode': True, 'seq_split_num': 2, 'use_valid_flag': False, **train},
    )
    test = dict(pipeline=test_pipeline(image), collect_keys=[*FRAME_KEYS, 'img', 'img_metas'], queue_length=1)
    return dict(
        sections(shared, own, test, root, infos, samples_per_gpu, workers_per_gpu),
        shuffler_sampler=dict(type='InfiniteGroupEachSampleInBatchSampler'),
        nonshuffler_sampler=dict(type='SceneSampler'),
    )


def stream_test_data(
    image: dict[str, Any],
    norm: dict[str, Any],
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes2d_temporal_infos',
) -> dict[str, Any]:
    """Return a `data` section of tests alone, for models that are trained elsewhere.

    Args:
        image: of `image_augmentation`.
        norm: mean, std and `to_rgb`.
        root: of the data set.
        infos: the info file is `<root><infos>_val.pkl`, as `tools/create_data.py` makes it.
    """
    test = dict(
        type='CustomNuScenesDataset',
        data_root=root,
        ann_file=f'{root}{infos}_val.pkl',
        pipeline=test_pipeline(image, norm),
        collect_keys=[*FRAME_KEYS, 'img', 'img_metas'],
        queue_length=1,
        classes=CLASS_NAMES,
        modality=MODALITY,
        box_type_3d='LiDAR',
        test_mode=True,
    )
    return dict(samples_per_gpu=1, workers_per_gpu=4, val=test, test=test)
