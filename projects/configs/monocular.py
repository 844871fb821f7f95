"""The `data` section of the toys of monocular detectors: annotations of `mm2onnx synthetic monocular`."""

from typing import Any

ROOT = 'data/toy_nuscenes/'


def sections(kind: str, **infos: str) -> dict[str, Any]:
    """Return the sections of a data set, which a config of mmdet3d completes.

    `kind` begins the names of its annotations; `infos` are further files of a section, key -> pattern with {}
    for the split.
    """
    result: dict[str, Any] = dict(samples_per_gpu=1, workers_per_gpu=1)
    for section, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        files = {key: ROOT + pattern.format(split) for key, pattern in infos.items()}
        annotations = f'{ROOT}{kind}_infos_{split}_mono3d.coco.json'
        result[section] = dict(data_root=ROOT, img_prefix=ROOT, ann_file=annotations, **files)
    return result


def nuscenes() -> dict[str, Any]:
    """Return the sections of the pictures of six cameras."""
    return sections('nuscenes')


def kitti_infos() -> dict[str, Any]:
    """Return the sections of the same pictures for mmdet3d's `KittiDataset`, whose cameras are in infos.

    The data set of the section `train` is wrapped, as mmdet3d's configs have it.
    """
    result: dict[str, Any] = dict(samples_per_gpu=1, workers_per_gpu=1)
    for section, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        files = dict(data_root=ROOT, ann_file=f'{ROOT}kitti_infos_{split}.pkl')
        result[section] = dict(dataset=files) if section == 'train' else files
    return result


def kitti() -> dict[str, Any]:
    """Return the sections of the pictures as those of KITTI."""
    return sections('kitti', info_file='kitti_infos_{}.pkl')


def kitti_sweeps() -> dict[str, Any]:
    """Return the sections of `kitti_infos` with the sweeps of the pictures, for tests alone."""
    result = kitti_infos()
    del result['train']
    for section in ('val', 'test'):
        result[section].update(split='val', pts_prefix='velodyne')
    return result
