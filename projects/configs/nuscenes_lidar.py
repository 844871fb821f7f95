"""The `data` section of LiDAR configs: one sweep of LIDAR_TOP per sample, past ones where they are loaded."""

from collections.abc import Sequence
from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES, sections

MODALITY = dict(use_lidar=True, use_camera=False, use_radar=False, use_map=False, use_external=False)
LOAD_POINTS = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)


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
    return dict(root='data/toy_nuscenes/', infos='toy_nuscenes_infos', workers_per_gpu=1)


def lidar_data(
    classes: Sequence[str] = CLASS_NAMES, loads: Sequence[dict[str, Any]] = (LOAD_POINTS,), **files: Any
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        classes: of boxes, by label.
        loads: steps that load points.
        files: of `sections`.
    """
    shared = dict(
        type='NuScenesDataset',
        classes=list(classes),
        modality=MODALITY,
        pipeline=test_pipeline(classes, loads),
    )
    return sections(shared, **files)
