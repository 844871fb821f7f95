"""Families of points alone: their samples, sweeps of the test loader, of infos, of dumps, and generated ones.

`SweepMethods` has what such families have in common.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.families.parts import lidar_models
from mmdeploy_ext.families.parts.samples import check_dumped, check_given, only, result
from mmdeploy_ext.preprocess.point_files import point_rule
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.sweeps import Sweeps
from mmdeploy_ext.synthetic import info_files
from mmdeploy_ext.synthetic.moments import generated_sweeps, plain_sweep


def frame(data: Mapping[str, Any]) -> Sweep:
    """Return a collated sample of the test loader, by key, as a sweep.

    DataError: `points` or `img_metas` is missing, or there are several samples.
    """
    check_given(data, ('points', 'img_metas'))
    points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
    return Sweep(
        points=np.ascontiguousarray(points.cpu().numpy(), np.float32),
        name=str(meta.get('sample_idx', '')),
    )


def moments(cfg: Any, rule: VoxelRule, infos: Path, root: str | Path | None = None) -> Iterator[Sweep]:
    """Yield the sweeps of infos, with the columns and the past sweeps that the config's pipeline loads.

    Of `rule` only the number of values of a point is read: all points come back. Names are the `token` of the
    infos, '' without one. Files are looked for at their paths in the infos, then below `root`, the folder of
    the data set, unless it is None, then below the folder of `infos`. The exported file takes points, and
    does not record how they were read. Calibration reads infos this way, too; other steps of the pipeline are
    not looked at. ConfigError: see `PointRule`; DataError: infos or a sweep cannot be read.
    """
    sweeps = Sweeps(infos, lambda points: (points, points), point_rule(cfg, rule.in_channels), root)
    for info in sweeps.items:
        yield Sweep(sweeps.points(info), str(info.get('token', '')))


def dumped_frame(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
    """Return the sweep of a dump, whose `manifest` may name the `frame`.

    `tensors` are by name, of which `points` (P, V) float32 are read. DataError: there are none.
    """
    check_dumped(tensors, ['points'])
    return Sweep(np.ascontiguousarray(tensors['points']), str(manifest.get('frame', '')))


def generated_dataset(folder: Path, cfg: Any, rule: VoxelRule) -> dict[str, Any]:
    """Write two generated moments of sweeps into a folder; return the config of a data set of them.

    It is of the config's own class where that reads such files (`info_files.dataset_of_files`), else a
    NuScenesDataset.
    """
    return info_files.generated_dataset(folder, cfg, dict(type='NuScenesDataset'), voxels=rule)


def plain_sample(rule: VoxelRule, sample: Sweep) -> Sweep:
    """Return a sweep of a single point of another sweep: the furthest in range, see `plain_sweep`."""
    return plain_sweep(sample, rule.point_cloud_range)


class SweepMethods:
    """What a family of points alone has beside `SequenceFamily`, before which it derives from this class.

    What its attributes are for is documented there and at `Family`.
    """

    files, samples = ('backbone', 'head'), 'sweeps'
    result = staticmethod(result)
    frame, moments, dumped_frame = staticmethod(frame), staticmethod(moments), staticmethod(dumped_frame)
    generated_sweeps = staticmethod(generated_sweeps)
    generated_dataset, plain_sample = staticmethod(generated_dataset), staticmethod(plain_sample)
    load_weights = staticmethod(lidar_models.load_weights)
    voxel_layer = staticmethod(lidar_models.voxel_layer)
    timed_methods = staticmethod(lidar_models.timed_methods)
