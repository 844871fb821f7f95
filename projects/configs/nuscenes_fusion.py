"""The `data` section of BEVFusion's configs: all cameras and the LiDAR of a key frame, sweeps of the past."""

from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES

MODALITY = dict(use_lidar=True, use_camera=True, use_radar=False, use_map=False, use_external=False)
MATRICES = ['camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix']
META_KEYS = [*MATRICES, 'filename', 'sample_idx', 'box_mode_3d', 'box_type_3d']
IMG_NORM = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def loading(sweeps: int, training: bool, cameras: bool) -> list[dict[str, Any]]:
    """Return the steps that read pictures and points; `sweeps` of the past beside the key frame's."""
    found = [dict(type='LoadMultiViewImageFromFiles', to_float32=True)] if cameras else []
    found.append(dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5))
    if sweeps:
        found.append(
            dict(
                type='LoadPointsFromMultiSweeps',
                sweeps_num=sweeps,
                load_dim=5,
                use_dim=[0, 1, 2, 3, 4],
                pad_empty_sweeps=True,
                remove_close=True,
                test_mode=not training,
            )
        )
    return found


def collected(image: dict[str, Any] | None, keys: list[str], **bundle: Any) -> list[dict[str, Any]]:
    """Return the last steps: the keys are what the model takes."""
    keys, meta = (['img', *keys], META_KEYS) if image else (keys, META_KEYS[len(MATRICES) + 1 :])
    return [
        *([dict(type='ImageNormalize', **IMG_NORM)] if image else []),
        dict(type='DefaultFormatBundle3D', class_names=CLASS_NAMES, **bundle),
        dict(type='Collect3D', keys=keys, meta_keys=meta),
    ]


def test_pipeline(image: dict[str, Any] | None, sweeps: int) -> list[dict[str, Any]]:
    """Return the steps of tests; `image` is what ImageAug3D takes, None without cameras."""
    return [
        *loading(sweeps, False, bool(image)),
        *([dict(type='ImageAug3D', **image)] if image else []),
        *collected(image, ['points'], with_label=False),
    ]


def train_pipeline(
    image: dict[str, Any] | None,
    sweeps: int,
    pc_range: list[float],
    rotation: float,
    scale: tuple[float, float],
    fold_heading: bool,
) -> list[dict[str, Any]]:
    """Return the steps of training; `rotation` in radians to either side, `scale` from and to."""
    return [
        *loading(sweeps, True, bool(image)),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        *([dict(type='ImageAug3D', is_train=True, **image)] if image else []),
        dict(
            type='GlobalRotScaleTrans',
            rot_range=[-rotation, rotation],
            scale_ratio_range=list(scale),
            translation_std=[0, 0, 0],
        ),
        dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
        dict(type='LidarAugMatrix'),
        dict(type='PointsRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectNameFilter', classes=CLASS_NAMES),
        *([dict(type='FoldHeading')] if fold_heading else []),
        dict(type='PointShuffle'),
        *collected(image, ['points', 'gt_bboxes_3d', 'gt_labels_3d']),
    ]


def fusion_data(
    image: dict[str, Any] | None,
    pc_range: list[float],
    train_image: dict[str, Any] | None = None,
    sweeps: int = 9,
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes_infos',
    rotation: float = 0.3925,
    scale: tuple[float, float] = (0.95, 1.05),
    fold_heading: bool = False,
    samples_per_gpu: int = 4,
    workers_per_gpu: int = 4,
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        image: what ImageAug3D takes at test time; None without cameras.
        pc_range: points and boxes outside are not learned.
        train_image: the same in training; None takes that of tests.
        sweeps: of the past.
        root: of the data set.
        infos: info files are `<root><infos>_{train,val}.pkl`, as mmdet3d makes them.
        rotation: of `train_pipeline`.
        scale: of `train_pipeline`.
        fold_heading: learn axes instead of headings, see `FoldHeading`.
        samples_per_gpu: batch size per process.
        workers_per_gpu: loader processes.
    """
    shared = dict(
        type='FusionNuScenesDataset' if image else 'NuScenesDataset',
        data_root=root,
        classes=CLASS_NAMES,
        modality=dict(MODALITY, use_camera=bool(image)),
        box_type_3d='LiDAR',
    )
    test = dict(
        shared,
        ann_file=f'{root}{infos}_val.pkl',
        test_mode=True,
        pipeline=test_pipeline(image, sweeps),
    )
    train = dict(
        shared,
        ann_file=f'{root}{infos}_train.pkl',
        use_valid_flag=True,
        test_mode=False,
        pipeline=train_pipeline(train_image or image, sweeps, pc_range, rotation, scale, fold_heading),
    )
    return dict(
        samples_per_gpu=samples_per_gpu, workers_per_gpu=workers_per_gpu, train=train, val=test, test=test
    )
