"""The `data` section of streaming configs, for tests: the pipelines differ in the image size alone."""

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
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes_infos',
    workers_per_gpu: int = 4,
) -> dict[str, Any]:
    """Return a `data` section for tests.

    Args:
        shared: keys of the data set.
        root: of the data set.
        infos: the info file is `<root><infos>_val.pkl`, as `tools/create_data.py` makes it.
        workers_per_gpu: loader processes.
    """
    test = dict(
        shared, data_root=root, box_type_3d='LiDAR', ann_file=f'{root}{infos}_val.pkl', test_mode=True
    )
    return dict(samples_per_gpu=1, workers_per_gpu=workers_per_gpu, val=test, test=test)


def stream_data(
    image: dict[str, Any],
    norm: dict[str, Any] = IMG_NORM,
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes2d_temporal_infos',
    workers_per_gpu: int = 4,
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        image: of `image_augmentation`.
        norm: mean, std and `to_rgb`.
        root, infos, workers_per_gpu: of `sections`.
    """
    shared = dict(
        type='CustomNuScenesDataset',
        pipeline=test_pipeline(image, norm),
        collect_keys=[*FRAME_KEYS, 'img', 'img_metas'],
        queue_length=1,
        classes=CLASS_NAMES,
        modality=MODALITY,
    )
    return sections(shared, root, infos, workers_per_gpu)
