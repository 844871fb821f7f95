"""Info files of nuScenes, as mmdet3d 1.0.0rc6 and StreamPETR read them, from the devkit's tables.

Scenes of neither split, or whose files are absent, are left out; `nuscenes_samples.py` has what a key frame's
entry holds.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, check_writable
from mmdeploy_ext.families.parts.nuscenes_samples import sample_info
from mmdeploy_ext.families.parts.nuscenes_source import (
    SPLITS,
    check_root,
    check_sample,
    load_tables,
    present_scenes,
    refuse_empty,
    scene_samples,
    whole_tables,
)

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

_ONLY_TEMPORAL = (
    'prev', 'next', 'scene_token', 'frame_idx', 'bboxes2d', 'bboxes3d_cams', 'labels2d', 'centers2d',
    'depths', 'bboxes_ignore', 'visibilities',
)  # fmt: skip
"""What the plain mmdet3d info files do not have."""


def split_infos(
    nusc: NuScenes, split: str, *, max_sweeps: int = 10, quiet: bool = False
) -> list[dict[str, Any]]:
    """Describe all key frames of a split, scene by scene, each in the order of time."""
    from nuscenes.utils.splits import create_splits_scenes

    scenes = present_scenes(nusc, create_splits_scenes()[split])
    samples = [pair for scene in scenes for pair in enumerate(scene_samples(nusc, scene))]
    for _, sample in samples:
        check_sample(nusc, sample)
    shown = track(samples, f'{split}: {len(scenes)} scenes', console=cli.stderr(), disable=quiet)
    return [
        sample_info(nusc, sample, number, max_sweeps=max_sweeps, annotated=split != 'test')
        for number, sample in shown
    ]


def info_paths(out_dir: str | os.PathLike[str], tag: str, split: str) -> tuple[Path, Path]:
    """Name the temporal and the plain info file of a split (`train`, `val` or `test`).

    The temporal one is `<tag>2d_temporal_infos_<split>.pkl`; a tag that ends with `2d`, as StreamPETR's own
    command has it, gets no second one.
    """
    stem = tag.removesuffix('2d')
    return Path(out_dir) / f'{stem}2d_temporal_infos_{split}.pkl', Path(out_dir) / f'{stem}_infos_{split}.pkl'


def _dump(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, 'wb') as stream:
        pickle.dump(content, stream, protocol=4)


def create_infos(
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    tag: str,
    version: str = 'v1.0-trainval',
    max_sweeps: int = 10,
    quiet: bool = False,
) -> dict[Path, int]:
    """Write the info files of all splits of a version, real or generated.

    Args:
        root: Folder with the version's tables, `samples/` and `maps/`; the paths in the infos begin with it.
        out_dir: Folder of the info files.
        tag: Begins their names (`info_paths`).
        version: One of `SPLITS`.
        max_sweeps: LiDAR sweeps before a key frame to list.
        quiet: Show no progress bar.

    Returns:
        The files written, and how many key frames each holds.

    Raises:
        UsageError: An option is out of its range.
        DataError: The data set is not whole.
    """
    if max_sweeps < 0:
        raise UsageError(f'--max-sweeps: got {max_sweeps}, expected 0 or more')
    if not tag or '/' in tag:
        raise UsageError(f'--extra-tag: got {tag!r}, expected the beginning of a file name')
    check_root(Path(root), version)
    targets = {split: info_paths(out_dir, tag, split.removeprefix('mini_')) for split in SPLITS[version]}
    for path in (path for pair in targets.values() for path in pair):
        check_writable(path)
    nusc = load_tables(Path(root), version)
    with whole_tables(Path(root) / version):
        found = {split: split_infos(nusc, split, max_sweeps=max_sweeps, quiet=quiet) for split in targets}
    if not any(found.values()):
        refuse_empty(nusc)
    written = {}
    for split, infos in found.items():
        less = [{key: value for key, value in info.items() if key not in _ONLY_TEMPORAL} for info in infos]
        for path, rows in zip(targets[split], (infos, less), strict=True):
            _dump(path, {'infos': rows, 'metadata': {'version': version}})
            written[path] = len(rows)
    return written
