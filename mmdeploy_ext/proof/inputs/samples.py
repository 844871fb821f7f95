"""What models of frames or sweeps are proven on: given files, the data set of the config, else generated.

Pictures are read by `apps.proof`, since every tool for pictures reads them before the weights load.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import ConfigError, DataError, UsageError
from mmdeploy_ext.inputs.pictures import IMAGE_SUFFIXES
from mmdeploy_ext.proof.inputs.synthetic_drive import synthetic_drive
from mmdeploy_ext.proof.inputs.voxel_sets import points_of
from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.base import Family

DEFAULT_FRAMES = 12
PROOF_SCENES = 3


def check_given(family: Family, paths: Sequence[str], option: str) -> None:
    """Refuse files that are no samples of a family, before its weights load.

    Args:
        family: of frames or sweeps.
        paths: that were given.
        option: that gave them, for the message.

    Raises:
        UsageError: not there, or of another kind.
    """
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f'{option} {path}: no such file or folder')
        kind = Path(path).suffix.lower()
        if family.memory and kind != '.pkl':
            raise UsageError(
                f'{option} {path}: models with a memory take frames with poses and calibrations: an info '
                f'file (.pkl); without {option} these are of data.test, or of a synthetic drive'
            )
        if kind in IMAGE_SUFFIXES:
            raise UsageError(
                f'{option} {path}: is a picture, the model takes LiDAR sweeps: points (.bin, .npy), a folder '
                f'of them, or an info file (.pkl, .json)'
            )


def check_count(family: Family, count: int | None) -> int:
    """Return the number of frames or sweeps of a proof.

    Args:
        family: of frames or sweeps.
        count: of --frames; None takes the default.

    Raises:
        UsageError: none, or too few for a memory.
    """
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
    family, names = deployment.family, ', '.join(Path(path).name for path in given)
    if given and not family.memory:
        sweeps = [
            Sweep(points, name, points_file=name)
            for path in given
            for name, points in points_of(path, deployment.cfg, deployment.rule, count)
        ]
        return sweeps, names
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.loop import DatasetFrames, scene_tokens

    cfg = deployment.cfg
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
            return synthetic_drive(count, deployment.rule), 'synthetic drive'
        return list(family.generated_sweeps(deployment.rule, count)), 'generated sweeps'
    indices = choose_frames(scene_tokens(dataset), count) if family.memory else spread(len(dataset), count)
    source = names or 'data.test'
    return (
        DatasetFrames(family, dataset, indices),
        f'{len(indices)} of {len(dataset)} frames of {source}',
    )


def choose_frames(tokens: Sequence[str], count: int) -> list[int]:
    """Return sample indices for a proof: the first frames of the first scenes, so that a memory is emptied.

    Args:
        tokens: scene token of every sample.
        count: frames wanted; spread over `PROOF_SCENES` scenes, or as many as it takes.
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
