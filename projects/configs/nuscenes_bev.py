"""The `data` section of BEVFormer's configs, for tests: the pipelines differ in colours and scale alone."""

from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES, IMG_NORM, MODALITY

CAFFE_NORM = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
META_KEYS = [
    'filename', 'ori_shape', 'img_shape', 'pad_shape', 'lidar2img', 'can_bus', 'ego_pose', 'timestamp',
    'box_mode_3d', 'box_type_3d', 'img_norm_cfg', 'scene_token', 'sample_idx',
]  # fmt: skip


def test_pipeline(
    norm: dict[str, Any], scale: float, source: tuple[int, int] = (1600, 900)
) -> list[dict[str, Any]]:
    """Return the steps of tests; `source` is (width, height) px of the pictures as they are taken."""
    steps = [
        dict(type='PadMultiViewImage', size_divisor=32),
        dict(type='DefaultFormatBundle3D', class_names=CLASS_NAMES, with_label=False),
        dict(type='Collect3D', keys=['img'], meta_keys=META_KEYS),
    ]
    if scale != 1:
        steps.insert(0, dict(type='RandomScaleImageMultiViewImage', scales=[scale]))
    return [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='NormalizeMultiviewImage', **norm),
        dict(type='MultiScaleFlipAug3D', img_scale=source, pts_scale_ratio=1, flip=False, transforms=steps),
    ]


def bev_data(
    norm: dict[str, Any] = IMG_NORM,
    scale: float = 0.5,
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes2d_temporal_infos',
    source: tuple[int, int] = (1600, 900),
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        norm: mean, std and `to_rgb`.
        scale: network pixels per pixel of a picture.
        root: of the data set.
        infos: the info file is `<root><infos>_val.pkl`, as `tools/create_data.py` makes it.
        source: (width, height) of the pictures, px.
    """
    test = dict(
        type='BevNuScenesDataset',
        data_root=root,
        ann_file=f'{root}{infos}_val.pkl',
        pipeline=test_pipeline(norm, scale, source),
        classes=CLASS_NAMES,
        modality=MODALITY,
        box_type_3d='LiDAR',
        test_mode=True,
    )
    return dict(samples_per_gpu=1, workers_per_gpu=4, val=test, test=test)


def command_data(**settings: Any) -> dict[str, Any]:
    """Return the `data` section of VAD, with the driver's command; `settings` of `bev_data`."""
    data = bev_data(**settings)
    data['test']['type'] = 'VADCustomNuScenesDataset'
    data['test']['pipeline'][-1]['transforms'][-1]['keys'].append('ego_fut_cmd')
    return data
