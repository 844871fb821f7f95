"""Frames or sweeps to prove a model on: given files, the data set of the config, else generated ones.

Pictures are read by `apps.proof`, since every tool for pictures reads them before the weights load.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import ConfigError, DataError, UsageError
from mmdeploy_ext.core.files import IMAGE_SUFFIXES
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.inputs.synthetic_drive import synthetic_drive
from mmdeploy_ext.proving.inputs.voxel_sets import points_of, sweep_sets
from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.families.base import Family

DEFAULT_FRAMES = 12
PROOF_SCENES = 3


def check_given(
    family: Family, paths: Sequence[str], count: int | None = None, option: str = '--images'
) -> int:
    """Refuse files that are no samples of a family, before its weights load; return how many frames to prove.

    The count is that of --frames; the option gave the paths.

    Raises:
        UsageError: not there, of another kind, no frame, or too few for a memory.
    """
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f'{option} {path}: no such file or folder')
        kind = Path(path).suffix.lower()
        if _has_cameras(family) and kind != '.pkl':
            what = 'models with a memory' if family.memory else 'models of cameras'
            raise UsageError(
                f'{option} {path}: {what} take frames with poses and calibrations: an info file (.pkl); '
                f'without {option} these are of data.test, or generated'
            )
        if kind in IMAGE_SUFFIXES:
            raise UsageError(
                f'{option} {path}: is a picture, the model takes LiDAR sweeps: points (.bin, .npy), a folder '
                f'of them, or an info file (.pkl, .json)'
            )
    least = 2 if family.memory else 1
    if count is not None and count < least:
        why = '; a memory needs a frame before' if family.memory else ''
        raise UsageError(f'--frames {count}: expected {least} or more{why}')
    return count or DEFAULT_FRAMES


def proof_samples(
    deployment: Deployment, count: int, given: Sequence[str] = ()
) -> tuple[Collection[Any], str]:
    """Return frames or sweeps to prove on, and where they are from.

    Args:
        deployment: of a family of frames or sweeps.
        count: how many.
        given: files, see `check_given`; empty takes the config's data set, or generates them without one.

    Raises:
        DataError: a file that cannot be read, or a data set that is damaged.
    """
    family, cfg, rule = deployment.family, deployment.cfg, deployment.rule
    names = ', '.join(Path(path).name for path in given)
    if family.product == BACKBONE:
        sets = (sweep_sets(path, rule, cfg, deployment.settings, count) for path in given)
        return [*itertools.chain(*sets)], ''
    if given and not _has_cameras(family):
        named = itertools.chain(*(points_of(path, cfg, rule, count) for path in given))
        return [Sweep(points, name, points_file=name) for name, points in named], names
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.loop import DatasetFrames, scene_tokens

    if given:
        cfg = copy.deepcopy(cfg)
        cfg.merge_from_dict({'data.test.ann_file': str(Path(given[0]).resolve())})
    try:
        dataset = evaluation.build_dataset(cfg)
    except (ConfigError, DataError) as error:
        if given:
            raise
        what = f'a synthetic drive of {count} frames is' if family.memory else f'{count} generated sweeps are'
        print(f'{what} used, since there is no data set: {one_line(error)}')
        if family.memory:
            return synthetic_drive(count, rule), 'synthetic drive'
        return list(family.generated_sweeps(rule, count)), 'generated sweeps'
    indices = choose_frames(scene_tokens(dataset), count) if family.memory else spread(len(dataset), count)
    source = f'{len(indices)} of {len(dataset)} frames of {names or "data.test"}'
    return DatasetFrames(family, dataset, indices), source


def _has_cameras(family: Family) -> bool:
    """Return whether files of points alone are no samples of a family."""
    return family.memory or family.samples == 'fused'


def choose_frames(tokens: Sequence[str], count: int) -> list[int]:
    """Return sample indices for a proof: the first frames of the first scenes, so that a memory is emptied.

    They are spread over `PROOF_SCENES` scenes, or as many as it takes, by the scene token of every sample.
    """
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        scenes.setdefault(token, []).append(index)
    share = max(-(-count // PROOF_SCENES), 2)
    while sum(min(len(scene), share) for scene in scenes.values()) < min(count, len(tokens)):
        share += 1
    return [index for scene in scenes.values() for index in scene[:share]][:count]


def spread(samples: int, count: int) -> list[int]:
    """Return `count` sample indices, or all, evenly over a data set whose samples stand alone."""
    count = min(count, samples)
    return [index * samples // count for index in range(count)]
