"""The `data` section of LiDAR configs: one sweep of LIDAR_TOP per sample, past ones where they are loaded."""

from collections.abc import Sequence
from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES

MODALITY = dict(use_lidar=True, use_camera=False, use_radar=False, use_map=False, use_external=False)
LOAD_POINTS = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)


def train_pipeline(
    pc_range: list[float],
    rotation: float,
    scale: tuple[float, float],
    fold_heading: bool = False,
    classes: Sequence[str] = CLASS_NAMES,
    loads: Sequence[dict[str, Any]] = (LOAD_POINTS,),
) -> list[dict[str, Any]]:
    """Return the steps of training; `rotation` in radians to either side, `scale` from and to.

    The other arguments are those of `lidar_data`.
    """
    fold = [dict(type='FoldHeading')] if fold_heading else []
    return [
        *loads,
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(
            type='GlobalRotScaleTrans',
            rot_range=[-rotation, rotation],
            scale_ratio_range=list(scale),
            translation_std=[0, 0, 0],
        ),
        dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
        dict(type='PointsRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectNameFilter', classes=list(classes)),
        *fold,
        dict(type='PointShuffle'),
        dict(type='DefaultFormatBundle3D', class_names=list(classes)),
        dict(type='Collect3D', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
    ]


def test_pipeline(
    classes: Sequence[str] = CLASS_NAMES, loads: Sequence[dict[str, Any]] = (LOAD_POINTS,)
) -> list[dict[str, Any]]:
    """Return the steps of tests; the voxel layer drops the points out of range.

    The nearest past sweeps are taken: without `test_mode` mmdet3d draws them, in tests as well.
    """
    past = 'LoadPointsFromMultiSweeps'
    return [
        *(dict(step, test_mode=True) if step['type'] == past else step for step in loads),
        dict(
            type='MultiScaleFlipAug3D',
            img_scale=(1333, 800),
            pts_scale_ratio=1,
            flip=False,
            transforms=[
                dict(type='DefaultFormatBundle3D', class_names=list(classes), with_label=False),
                dict(type='Collect3D', keys=['points']),
            ],
        ),
    ]


def lidar_data(
    pc_range: list[float],
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes_infos',
    rotation: float = 0.3925,
    scale: tuple[float, float] = (0.95, 1.05),
    fold_heading: bool = False,
    samples_per_gpu: int = 4,
    workers_per_gpu: int = 4,
    classes: Sequence[str] = CLASS_NAMES,
    loads: Sequence[dict[str, Any]] = (LOAD_POINTS,),
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        pc_range: points and boxes outside are not learned.
        root: of the data set.
        infos: info files are `<root><infos>_{train,val}.pkl`, as mmdet3d makes them.
        rotation: of `train_pipeline`.
        scale: of `train_pipeline`.
        fold_heading: learn axes instead of headings, see `FoldHeading`.
        samples_per_gpu: batch size per process.
        workers_per_gpu: loader processes.
        classes: of boxes that are learned, by label.
        loads: steps that load points.
    """
    shared = dict(
        type='NuScenesDataset', data_root=root, classes=list(classes), modality=MODALITY, box_type_3d='LiDAR'
    )
    test = dict(
        shared, ann_file=f'{root}{infos}_val.pkl', pipeline=test_pipeline(classes, loads), test_mode=True
    )
    train = dict(
        shared,
        ann_file=f'{root}{infos}_train.pkl',
        use_valid_flag=True,
        test_mode=False,
        pipeline=train_pipeline(pc_range, rotation, scale, fold_heading, classes, loads),
    )
    return dict(
        samples_per_gpu=samples_per_gpu, workers_per_gpu=workers_per_gpu, train=train, val=test, test=test
    )
