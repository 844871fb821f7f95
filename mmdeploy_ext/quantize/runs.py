"""Samples to calibrate one graph of several on: the model's other graphs run first and feed it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import DataError, ModelFileError
from mmdeploy_ext.quantize.images import CalibrationSet, evenly
from mmdeploy_ext.quantize.sweeps import PointRule, Sweeps
from mmdeploy_ext.runtime.consumers import runtime_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.infos import read_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.contract.metadata import Metadata


def quantised_graph(family: str) -> str:
    """Return the name of the graph of a family's folders that the others feed and INT8 is for, '' of none."""
    return getattr(runtime_of(family), 'QUANTISED', '')


def calibration_runs(
    path: Path, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> CalibrationSet:
    """Return what a graph takes of samples of the model's kind, from a run of the graphs before it.

    Args:
        path: of the graph; the others of its export are beside it.
        metadata: of the graph.
        source: sweeps or infos; of frames of cameras and LiDAR infos.
        root: folder of the data set that infos name.
        limit: at most so many samples, evenly; 0 takes all.

    Raises:
        ModelFileError: a graph of the export is missing, or a model of fused frames has no cameras.
        DataError: no such source, or nothing in it that the model takes.
    """
    model = runtime_of(metadata.family).OPENS(path.parent)
    items, sample = READERS[metadata.samples](model, metadata, source, root, limit)
    return CalibrationSet(items, lambda item: model.feeds(sample(item)), metadata.samples)


def _sweeps(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Sweep]]:
    every = tuple(range(model.width))
    sweeps = Sweeps(source, lambda points: (points, points), PointRule(model.width, every), root, limit)
    if voxels := [item for item in sweeps.items if isinstance(item, Path) and item.suffix == '.npz']:
        raise DataError(f'{voxels[0]}: holds voxels, the model takes points; give sweeps (.bin, .npy)')
    return sweeps.items, lambda item: Sweep(sweeps.points(item), sweeps.name(item))


def _frames(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Any]]:
    rule = metadata.preprocess.views
    if rule is None:
        raise ModelFileError(
            f'a model of family {metadata.family!r} of LiDAR alone: frames to calibrate on come with '
            f'pictures, so that only models with cameras are quantised'
        )
    frames = evenly(read_frames(source, rule, root), limit)
    return frames, lambda frame: model.moment(frame.read_pictures(), frame, root)


READERS = dict(sweeps=_sweeps, fused=_frames)
"""Kind of samples -> what lists them, and what reads one."""
