"""Samples of a proof: files of the user, the data set of the config, else generated frames or sweeps."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmdeploy_ext.detector import checked_rule
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.proving.inputs.pictures import with_bands
from mmdeploy_ext.util.errors import ConfigError, DataError, ImageError, UsageError, after_weights, one_line
from mmdeploy_ext.util.files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.preprocess.pictures import PreprocessRule

MAX_IMAGES = 8
"""Largest number of pictures of the user in a proof, which adds changed ones."""
DATA_SET_PICTURES = 3
"""Largest number of pictures of `data.test` in a proof, if the user names none."""
DEFAULT_FRAMES = 12
"""Default of the largest number of frames or sweeps."""
PROOF_SCENES = 3
"""Scenes that the frames of a proof are spread over."""


def picture_files(paths: Iterable[str | Path], limit: int = MAX_IMAGES) -> list[Path]:
    """Return the files of images, and of images in and below folders, at most `limit`."""
    from mmdeploy_ext.preprocess.pictures import list_images

    files = list_images(paths)
    if len(files) > limit > 1:
        print(f'{len(files)} images were given, the first {limit} are used')
    return files[:limit]


def read_images(
    paths: Iterable[str | Path], limit: int = MAX_IMAGES, rule: PreprocessRule | None = None
) -> list[tuple[str, np.ndarray]]:
    """Return (file name, picture as `rule` takes it) of images, also in folders, at most `limit`.

    Without a rule pictures are (h, w, 3) uint8 BGR.
    """
    return [(file.name, read_picture(file, rule)) for file in picture_files(paths, limit)]


def read_picture(path: str | Path, rule: PreprocessRule | None = None) -> np.ndarray:
    """Return a picture as `rule` takes it; the package's picture gets the bands that it lacks."""
    from mmdeploy_ext.preprocess.pictures import read_image

    if rule is None or rule.color_type != 'unchanged':
        return read_image(path)
    if is_default(path):
        return with_bands(read_image(path), rule.bands)
    picture = read_image(path, rule.color_type)
    if picture.shape[2:] != (rule.bands,):
        raise ImageError(
            f'{path}: got an array {picture.shape}, expected (h, w, {rule.bands}): mean of Normalize has '
            f'{rule.bands} values'
        )
    return picture


def is_default(path: str | Path) -> bool:
    return Path(path).resolve() == DEFAULT_PICTURE.resolve()


class ChosenSamples(NamedTuple):
    """Samples of a proof as `Kind.prove` takes them.

    Attributes:
        samples: named pictures, frames, sweeps or voxels.
        origin: source of frames and sweeps in words.
        files: paths of the pictures.
    """

    samples: Collection[Any]
    origin: str = ''
    files: Sequence[Path] = ()


class Samples:
    """The samples of a proof: pictures are read at once, frames and sweeps by `of`, with a model.

    Attributes:
        paths: files and folders of the user.
        files, pictures: path, and (file name, picture as the rule takes it), of each picture.
        count: most frames or sweeps; 0 for a family of pictures.
    """

    def __init__(
        self,
        detector: Detector,
        paths: Sequence[str],
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> None:
        """Check the samples before the weights load.

        - `paths`: files and folders; empty: a picture of this package, the config's data set, or generated
          ones.
        - `option`: the option that named the files, for messages.
        - `traced`: picture before the pictures of `paths`.
        """
        family = detector.family
        takes_pictures = family.samples == 'images'
        self.paths = paths
        self.files = picture_files([traced], 1) if traced and takes_pictures else []
        if takes_pictures and (paths or not traced):
            self.files += picture_files(paths or [DEFAULT_PICTURE])
        rule = checked_rule(detector.cfg, family) if takes_pictures else None
        self.pictures = read_images(self.files, len(self.files), rule)
        self.count = 0 if takes_pictures else check_paths(family, paths, frames, option)

    def of(self, detector: Detector) -> ChosenSamples:
        """Return the samples; errors have exit status 1."""
        if self.pictures and self.paths:
            return ChosenSamples(self.pictures, files=self.files)
        if self.pictures:
            pictures, files, origin = data_set_pictures(detector.cfg, detector.rule)
            return ChosenSamples([*self.pictures, *pictures], origin, [*self.files, *files])
        with after_weights():
            return ChosenSamples(*proof_samples(detector, self.count, self.paths))


def data_set_pictures(
    cfg: Any, rule: PreprocessRule | None = None
) -> tuple[list[tuple[str, np.ndarray]], list[Path], str]:
    """Return pictures spread over `data.test`, their paths, and a text for the verdict.

    Nothing is returned where the files of `data.test` are not there. Where it cannot be read the text says
    why.
    """
    from mmdeploy_ext.evaluate.evaluation import AbsentDataError, build_dataset

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says that it loads
            dataset = build_dataset(cfg)
        folder, count = dataset.img_prefix or '', len(dataset)
        number = min(DATA_SET_PICTURES, count)
        infos = (dataset.data_infos[index * count // number] for index in range(number))
        files = [Path(folder, info['filename']) for info in infos]
        pictures = read_images(files, rule=rule)
    except (AbsentDataError, ConfigError):
        return [], [], ''
    except Exception as error:  # a user's class raises what it likes
        return [], [], f'without data.test ({type(error).__name__}: {one_line(error)[:150]})'
    return pictures, files, f'{len(files)} of {count} of data.test'


def check_paths(
    family: Family, paths: Sequence[str], count: int | None = None, option: str = '--images'
) -> int:
    """Raise UsageError for files that are no samples of a family; return the number of frames."""
    if _has_cameras(family) and len(paths) > 1:
        raise UsageError(f'{option} {" ".join(paths)}: expected one info file, with the frames of all')
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f'{option} {path}: no such file or folder')
        suffix = Path(path).suffix.lower()
        if _has_cameras(family) and suffix != '.pkl':
            models = 'models with a memory' if family.memory else 'models of cameras'
            raise UsageError(
                f'{option} {path}: {models} take frames with poses and calibrations: an info file (.pkl); '
                f'without {option} these are of data.test, or generated'
            )
        if suffix in IMAGE_SUFFIXES:
            raise UsageError(
                f'{option} {path}: is a picture, the model takes LiDAR sweeps: points (.bin, .npy), a folder '
                f'of them, or an info file (.pkl, .json)'
            )
    minimum = 2 if family.memory else 1
    if count is not None and count < minimum:
        why = '; a memory needs a frame before' if family.memory else ''
        raise UsageError(f'--frames {count}: expected {minimum} or more{why}')
    return count or DEFAULT_FRAMES


def _has_cameras(family: Family) -> bool:
    return family.memory or family.samples == 'fused'


def proof_samples(detector: Detector, count: int, paths: Sequence[str] = ()) -> tuple[Collection[Any], str]:
    """Return frames, sweeps or `VoxelSet`s, and a text about their source.

    `count`: most samples, for each of `paths` with LiDAR. Without `paths`: the config's data set, or
    generated samples; none for a backbone.
    """
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.loop import DatasetFrames, scene_tokens
    from mmdeploy_ext.families.base import BACKBONE
    from mmdeploy_ext.proving.inputs.voxel_sets import points_of, sweep_sets
    from mmdeploy_ext.runtime.frames import Sweep
    from mmdeploy_ext.synthetic.drive import synthetic_drive

    family, cfg, rule = detector.family, detector.cfg, detector.rule
    names = ', '.join(Path(path).name for path in paths)
    if family.product == BACKBONE:
        sets = (sweep_sets(path, rule, cfg, detector.settings, count) for path in paths)
        return [*itertools.chain(*sets)], ''
    if paths and not _has_cameras(family):
        sweeps = itertools.chain(*(points_of(path, cfg, rule, count) for path in paths))
        return [Sweep(points, name) for name, points in sweeps], names
    if paths:
        cfg = copy.deepcopy(cfg)
        cfg.merge_from_dict({'data.test.ann_file': str(Path(paths[0]).resolve())})
    try:
        dataset = evaluation.build_dataset(cfg)
    except (ConfigError, DataError) as error:
        if paths:
            raise
        source = (
            f'a synthetic drive of {count} frames is' if family.memory else f'{count} generated sweeps are'
        )
        print(f'{source} used, since there is no data set: {one_line(error)}')
        if family.memory:
            scenes = min(PROOF_SCENES, max(count - 1, 1))  # one has two frames, the second with a memory
            return synthetic_drive(count, rule, scenes=scenes), 'synthetic drive'
        return list(family.data.generated_sweeps(rule, count)), 'generated sweeps'
    if family.memory:
        indices = choose_frames(scene_tokens(dataset), count)
    else:  # without a memory samples do not depend on each other: they are evenly spread
        available = min(count, len(dataset))
        indices = [index * len(dataset) // available for index in range(available)]
    source = f'{len(indices)} of {len(dataset)} frames of {names or "data.test"}'
    return DatasetFrames(family, dataset, indices), source


def choose_frames(tokens: Sequence[str], count: int) -> list[int]:
    """Return the indices of the first frames of the first scenes, so that a memory is emptied."""
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        scenes.setdefault(token, []).append(index)
    share = max(-(-count // PROOF_SCENES), 2)
    while sum(min(len(scene), share) for scene in scenes.values()) < min(count, len(tokens)):
        share += 1
    return [index for scene in scenes.values() for index in scene[:share]][:count]
