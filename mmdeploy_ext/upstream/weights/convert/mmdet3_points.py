"""Converts LiDAR detectors of mmdet3d 1.4 (mmengine) to mmdet3d 1.0.0rc6: model, test pipeline, data set.

Coordinates and names of weights are the same. Source: mmdet3d 1.4.0 `Det3DDataPreprocessor` and its configs.
"""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.base.errors import ConfigError

PREPROCESSOR = 'Det3DDataPreprocessor'
DETECTORS = dict(VoxelNet='voxel_layer', CenterPoint='pts_voxel_layer', MVXFasterRCNN='pts_voxel_layer')
"""Detector -> its key of the voxel layer."""
VOXEL_TYPES = ('hard', 'dynamic')
PREPROCESSOR_KEYS = {'type', 'voxel', 'voxel_layer', 'voxel_type', 'max_voxels', 'non_blocking'}
LOADERS = ('LoadPointsFromFile', 'LoadPointsFromMultiSweeps')
PACK = 'Pack3DDetInputs'
INSIDE = ('GlobalRotScaleTrans', 'RandomFlip3D', 'PointsRangeFilter')
"""Steps inside of MultiScaleFlipAug3D, of both versions."""
MODALITY = dict(use_lidar=True, use_camera=False, use_radar=False, use_map=False, use_external=False)
INFOS = 'mmdet3d_1.0_infos.pkl'
"""Name of a file that is not there: info files of mmdet3d 1.4 have another layout."""


def is_of_points(preprocessor: Mapping[str, Any]) -> bool:
    return preprocessor.get('type') == PREPROCESSOR


def to_mmdet3d_1_0(
    model: dict[str, Any], preprocessor: Mapping[str, Any], dataset: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and test data set for mmdet3d 1.0.0rc6, of entries without scopes.

    ConfigError: a detector, step or key that has no counterpart there. KeyError: no voxel layer.
    """
    kind = model['type']
    if kind not in DETECTORS:
        raise ConfigError(f'model.type={kind!r} of mmdet3d 1.x: expected one of {", ".join(DETECTORS)}')
    if unexpected := sorted(preprocessor.keys() - PREPROCESSOR_KEYS):
        raise ConfigError(
            f'model.data_preprocessor.{unexpected[0]}={preprocessor[unexpected[0]]!r} is not known here; '
            f'expected {", ".join(sorted(PREPROCESSOR_KEYS))}'
        )
    if (voxels := preprocessor.get('voxel_type', 'hard')) not in VOXEL_TYPES:
        raise ConfigError(
            f'model.data_preprocessor.voxel_type={voxels!r}: expected one of {", ".join(VOXEL_TYPES)}'
        )
    left_out = ('data_preprocessor', 'train_cfg')
    model = {key: value for key, value in model.items() if key not in left_out}
    model[DETECTORS[kind]] = dict(preprocessor['voxel_layer'])
    metainfo = dataset.get('metainfo') or {}
    classes = list(metainfo.get('classes') or metainfo.get('CLASSES') or ())
    made = dict(type=dataset.get('type', 'NuScenesDataset'), data_root='', ann_file=INFOS, classes=classes)
    if made['type'] == 'KittiDataset':
        made.update(split='training', pts_prefix='velodyne_reduced')
    made.update(pipeline=_pipeline(dataset['pipeline'], classes), modality=MODALITY)
    return model, dict(made, test_mode=True, box_type_3d='LiDAR')


def _pipeline(steps: list[dict[str, Any]], classes: list[str]) -> list[dict[str, Any]]:
    loads, scales, inside = [], dict(img_scale=(1333, 800), pts_scale_ratio=1, flip=False), []
    for index, step in enumerate(steps):
        kind = step['type']
        values = {key: value for key, value in step.items() if key != 'backend_args'}
        if kind in LOADERS:
            loads.append(values)
        elif kind == 'MultiScaleFlipAug3D':
            inside += [_inside(index, inner) for inner in step['transforms'] if inner['type'] != PACK]
            scales |= {key: value for key, value in values.items() if key in scales}
        elif kind != PACK:
            inside.append(_inside(index, values))
    inside += [
        dict(type='DefaultFormatBundle3D', class_names=classes, with_label=False),
        dict(type='Collect3D', keys=['points']),
    ]
    return [*loads, dict(type='MultiScaleFlipAug3D', **scales, transforms=inside)]


def _inside(index: int, step: dict[str, Any]) -> dict[str, Any]:
    if step['type'] not in INSIDE:
        raise ConfigError(
            f'test_pipeline.{index}.type={step["type"]!r} is not known here; expected one of '
            f'{", ".join((*LOADERS, *INSIDE, PACK))}'
        )
    return step
