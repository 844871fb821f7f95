"""The `data` section of LiDAR configs: one sweep of LIDAR_TOP per sample, past ones where they are loaded."""

from collections.abc import Sequence
from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES, sections

MODALITY = dict(use_lidar=True, use_camera=False, use_radar=False, use_map=False, use_external=False)
LOAD_POINTS = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)


def augmented(
    pc_range: list[float],
    rotation: float,
    scale: tuple[float, float],
    fold_heading: bool = False,
    classes: Sequence[str] = CLASS_NAMES,
    moved: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return the steps that change points and boxes; `moved` are those behind the ones that move points.

    `rotation` is in radians to either side, `scale` from and to; the others are those of `lidar_data`.
    """
    return [
        dict(
            type='GlobalRotScaleTrans',
            rot_range=[-rotation, rotation],
            scale_ratio_range=list(scale),
            translation_std=[0, 0, 0],
        ),
        dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
        *moved,
        dict(type='PointsRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectRangeFilter', point_cloud_range=pc_range),
        dict(type='ObjectNameFilter', classes=list(classes)),
        *([dict(type='FoldHeading')] if fold_heading else []),
        dict(type='PointShuffle'),
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


def toy() -> dict[str, Any]:
    """Return the arguments of `lidar_data` and `fusion_data` for the generated data set."""
    return dict(root='data/toy_nuscenes/', infos='toy_nuscenes_infos', fold_heading=True, workers_per_gpu=1)


def lidar_data(
    pc_range: list[float],
    rotation: float = 0.3925,
    scale: tuple[float, float] = (0.95, 1.05),
    fold_heading: bool = False,
    classes: Sequence[str] = CLASS_NAMES,
    loads: Sequence[dict[str, Any]] = (LOAD_POINTS,),
    **files: Any,
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        pc_range: points and boxes outside are not learned.
        rotation, scale: of `augmented`.
        fold_heading: learn axes instead of headings, see `FoldHeading`.
        classes: of boxes that are learned, by label.
        loads: steps that load points.
        files: of `sections`.
    """
    steps = [
        *loads,
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        *augmented(pc_range, rotation, scale, fold_heading, classes),
        dict(type='DefaultFormatBundle3D', class_names=list(classes)),
        dict(type='Collect3D', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
    ]
    shared = dict(type='NuScenesDataset', classes=list(classes), modality=MODALITY)
    train = dict(use_valid_flag=True, pipeline=steps)
    return sections(shared, train, dict(pipeline=test_pipeline(classes, loads)), **files)
