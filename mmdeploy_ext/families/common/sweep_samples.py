"""Families of points alone: sweeps of the test loader, infos, dumps or the generator."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.families.common.lidar_models import LidarMethods
from mmdeploy_ext.families.common.samples import check_dumped, check_given, only, result
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic import info_files
from mmdeploy_ext.families.synthetic.moments import generated_sweeps
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.runtime.sweeps import Sweeps
from mmdeploy_ext.spec.preparation import VoxelRule


class SweepData(SequenceData):
    """Sweeps of points alone."""

    def frame(self, data: Mapping[str, Any]) -> Sweep:
        check_given(data, ('points', 'img_metas'))
        points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
        return Sweep(
            points=np.ascontiguousarray(points.cpu().numpy(), np.float32),
            name=str(meta.get('sample_idx', '')),
        )

    def moments(
        self, cfg: Any, rule: VoxelRule, infos: Path, root: str | Path | None = None
    ) -> Iterator[Sweep]:
        sweeps = Sweeps(infos, lambda points: (points, points), point_rule(cfg, rule.in_channels), root)
        for info in sweeps.items:
            yield Sweep(sweeps.points(info), str(info.get('token', '')))

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
        check_dumped(tensors, ['points'])
        return Sweep(np.ascontiguousarray(tensors['points']), str(manifest.get('frame', '')))

    def generated_dataset(self, folder: Path, cfg: Any, rule: VoxelRule) -> dict[str, Any]:
        return info_files.generated_dataset(folder, cfg, dict(type='NuScenesDataset'), voxels=rule)

    def generated_sweeps(self, rule: VoxelRule, count: int) -> Iterable[Sweep]:
        return generated_sweeps(rule, count)


class SweepMethods(LidarMethods):
    """Methods of families of points alone; derive from this class before `SequenceFamily`."""

    files, samples, data = ('backbone', 'head'), 'sweeps', SweepData()
    result = staticmethod(result)
