"""The `data` section of BEVFusion's configs: all cameras and the LiDAR of a key frame, sweeps of the past."""

from typing import Any

from projects.configs.nuscenes_lidar import LOAD_POINTS, MODALITY
from projects.configs.nuscenes_stream import CLASS_NAMES, sections

MATRICES = ['camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix']
META_KEYS = [*MATRICES, 'filename', 'sample_idx', 'box_mode_3d', 'box_type_3d']
IMG_NORM = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def loading(sweeps: int, cameras: bool) -> list[dict[str, Any]]:
    """Return the steps that read pictures and points; `sweeps` of the past beside the key frame's."""
    found = [dict(type='LoadMultiViewImageFromFiles', to_float32=True)] if cameras else []
    found.append(LOAD_POINTS)
    if sweeps:
        found.append(
            dict(
                type='LoadPointsFromMultiSweeps',
                sweeps_num=sweeps,
                load_dim=5,
                use_dim=[0, 1, 2, 3, 4],
                pad_empty_sweeps=True,
                remove_close=True,
                test_mode=True,
            )
        )
    return found


def test_pipeline(image: dict[str, Any] | None, sweeps: int) -> list[dict[str, Any]]:
    """Return the steps of tests; `image` is what ImageAug3D takes, None without cameras."""
    keys, meta = (['img', 'points'], META_KEYS) if image else (['points'], META_KEYS[len(MATRICES) + 1 :])
    pictures = [dict(type='ImageAug3D', **image), dict(type='ImageNormalize', **IMG_NORM)] if image else []
    return [
        *loading(sweeps, bool(image)),
        *pictures,
        dict(type='DefaultFormatBundle3D', class_names=CLASS_NAMES, with_label=False),
        dict(type='Collect3D', keys=keys, meta_keys=meta),
    ]


def fusion_data(image: dict[str, Any] | None, sweeps: int = 9, **files: Any) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        image: what ImageAug3D takes; None without cameras.
        sweeps: of the past.
        files: of `sections`.
    """
    kind = 'FusionNuScenesDataset' if image else 'NuScenesDataset'
    modality = dict(MODALITY, use_camera=bool(image))
    shared = dict(type=kind, classes=CLASS_NAMES, modality=modality, pipeline=test_pipeline(image, sweeps))
    return sections(shared, **files)
