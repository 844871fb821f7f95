"""Samples of mmdet3d's test loader as sweeps, and dumps read back."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.families.parts.samples import check_dumped, check_given, only
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.quantize.sweeps import Sweeps, point_rule
from mmdeploy_ext.runtime.frames import Sweep


def sweep(data: Mapping[str, Any]) -> Sweep:
    """Return one collated sample of the test loader (batch 1, one augmentation) as a sweep."""
    check_given(data, ('points', 'img_metas'))
    points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
    return Sweep(
        points=np.ascontiguousarray(points.cpu().numpy(), np.float32),
        name=str(meta.get('sample_idx', '')),
        points_file=str(meta.get('pts_filename', '')),
    )


def moments(cfg: Any, rule: VoxelRule, infos: Path, root: str | Path | None = None) -> Iterator[Sweep]:
    """Yield the sweeps of infos by the config's columns and sweeps of the past; see `SequenceFamily.moments`.

    A file takes points, and says nothing of how they were read: calibration and proofs read infos this way.
    """
    sweeps = Sweeps(infos, lambda points: (points, points), point_rule(cfg, rule.in_channels), root)
    for info in sweeps.items:
        yield Sweep(sweeps.points(info), str(info.get('token', '')), points_file=sweeps.name(info))


def dumped(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
    """Return a dumped sweep as it was fed."""
    check_dumped(tensors, ['points'])
    return Sweep(np.ascontiguousarray(tensors['points']), str(manifest.get('frame', '')))
