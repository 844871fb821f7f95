"""The `data` section of BEVFusion's configs: all cameras and the LiDAR of a key frame, sweeps of the past."""

from typing import Any

from projects.configs.nuscenes_lidar import LOAD_POINTS, MODALITY, augmented
from projects.configs.nuscenes_stream import CLASS_NAMES, sections

MATRICES = ['camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix']
META_KEYS = [*MATRICES, 'filename', 'sample_idx', 'box_mode_3d', 'box_type_3d']
IMG_NORM = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def loading(sweeps: int, training: bool, cameras: bool) -> list[dict[str, Any]]:
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


def fusion_data(
    image: dict[str, Any] | None,
    pc_range: list[float],
    train_image: dict[str, Any] | None = None,
    sweeps: int = 9,
    rotation: float = 0.3925,
    scale: tuple[float, float] = (0.95, 1.05),
    fold_heading: bool = False,
    **files: Any,
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        image: what ImageAug3D takes at test time; None without cameras.
        pc_range: points and boxes outside are not learned.
        train_image: the same in training; None takes that of tests.
        sweeps: of the past.
        rotation, scale, fold_heading: of `nuscenes_lidar.augmented`.
        files: of `sections`.
    """
    shown = train_image or image
    steps = [
        *loading(sweeps, True, bool(image)),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        *([dict(type='ImageAug3D', is_train=True, **shown)] if shown else []),
        *augmented(pc_range, rotation, scale, fold_heading, moved=[dict(type='LidarAugMatrix')]),
        *collected(shown, ['points', 'gt_bboxes_3d', 'gt_labels_3d']),
    ]
    kind = 'FusionNuScenesDataset' if image else 'NuScenesDataset'
    shared = dict(type=kind, classes=CLASS_NAMES, modality=dict(MODALITY, use_camera=bool(image)))
    train = dict(use_valid_flag=True, pipeline=steps)
    return sections(shared, train, dict(pipeline=test_pipeline(image, sweeps)), **files)
