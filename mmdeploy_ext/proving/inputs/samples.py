"""Samples of a proof, and pictures: files of the user, and of the data set of the config."""

from __future__ import annotations

import abc
import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmdeploy_ext.base.errors import ConfigError, ImageError, one_line
from mmdeploy_ext.families.detector import checked_rule
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.preparation import PreprocessRule

MAX_IMAGES = 8
"""Largest number of pictures of the user in a proof, which adds changed ones."""
DATA_SET_PICTURES = 3
"""Largest number of pictures of `data.test` in a proof, if the user names none."""


def picture_files(paths: Iterable[str | Path], limit: int = MAX_IMAGES) -> list[Path]:
    """Return the files of images, and of images in and below folders, at most `limit`."""
    from mmdeploy_ext.runtime.preprocess.pictures import list_images

    files = list_images(paths)
    if len(files) > limit > 1:
        print(f'{len(files)} images given, only the first {limit} are used')
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
    from mmdeploy_ext.proving.inputs.inputs import with_bands
    from mmdeploy_ext.runtime.preprocess.pictures import read_image

    if rule is None or rule.color_type != 'unchanged':
        return read_image(path)
    if is_default(path):
        return with_bands(read_image(path), rule.bands)
    picture = read_image(path, rule.color_type)
    if picture.shape[2:] != (rule.bands,):
        raise ImageError(
            f'{path}: got an array of shape {picture.shape}, expected (h, w, {rule.bands}), since mean of '
            f'Normalize has {rule.bands} values'
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


class Samples(abc.ABC):
    """The samples of a proof: what the user named is checked at once, the rest is read with a model.

    Attributes:
        pictures: (file name, picture as the rule takes it) of each picture; [] for other samples.
    """

    pictures: Sequence[tuple[str, np.ndarray]] = ()

    @abc.abstractmethod
    def of(self, detector: Detector) -> ChosenSamples:
        """Return the samples; errors have exit status 1."""


class PictureSamples(Samples):
    """Pictures, which are read at once.

    Attributes:
        paths: files and folders of the user.
        files: path of each picture.
    """

    def __init__(self, detector: Detector, paths: Sequence[str | Path], traced: str | Path = '') -> None:
        """Read the pictures before the weights load.

        - `paths`: files and folders; empty: the package's picture and the config's data set.
        - `traced`: picture before the pictures of `paths`; with it the package's is left out.
        """
        self.paths = paths
        self.files = picture_files([traced], 1) if traced else []
        if paths or not traced:
            self.files += picture_files(paths or [DEFAULT_PICTURE])
        rule = checked_rule(detector.cfg, detector.family)
        self.pictures = read_images(self.files, len(self.files), rule)

    def of(self, detector: Detector) -> ChosenSamples:
        if self.paths:
            return ChosenSamples(self.pictures, files=self.files)
        pictures, files, origin = data_set_pictures(detector.cfg, detector.rule)
        return ChosenSamples([*self.pictures, *pictures], origin, [*self.files, *files])


def data_set_pictures(
    cfg: Any, rule: PreprocessRule | None = None
) -> tuple[list[tuple[str, np.ndarray]], list[Path], str]:
    """Return pictures spread over `data.test`, their paths, and a text for the verdict.

    Nothing is returned where the files of `data.test` are not there. Where it cannot be read the text says
    why.
    """
    from mmdeploy_ext.families.evaluate.evaluation import AbsentDataError, build_dataset, inner_datasets

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says that it loads
            dataset = build_dataset(cfg)
        paths = [
            Path(one.img_prefix or '', info['filename'])
            for one in inner_datasets(dataset)
            for info in one.data_infos
        ]
        count = len(paths)
        number = min(DATA_SET_PICTURES, count)
        files = [paths[index * count // number] for index in range(number)]
        pictures = read_images(files, rule=rule)
    except (AbsentDataError, ConfigError):
        return [], [], ''
    except Exception as error:  # a user's class raises what it likes
        return [], [], f'without data.test ({type(error).__name__}: {one_line(error)[:150]})'
    return pictures, files, f'{len(files)} of {count} of data.test'
