"""The samples that a user names for a proof, or those that are taken if there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.families.base import Family

MAX_IMAGES = 8


def picture_files(paths: Iterable[str | Path], limit: int = MAX_IMAGES) -> list[Path]:
    """Return the files of images and of folders of images, at most `limit`."""
    from mmdeploy_ext.preprocess.pictures import list_images

    files = list_images(paths)
    if len(files) > limit > 1:
        print(f'{len(files)} images were given, the first {limit} are used')
    return files[:limit]


def read_images(paths: Iterable[str | Path], limit: int = MAX_IMAGES) -> list[tuple[str, np.ndarray]]:
    """Read images and folders of images: (file name, BGR picture), at most `limit`."""
    from mmdeploy_ext.preprocess.pictures import read_image

    return [(file.name, read_image(file)) for file in picture_files(paths, limit)]


class Samples:
    """What a proof runs on: pictures are read at once, frames and sweeps when there is a model.

    Attributes:
        files: of the pictures.
        pictures: (file name, BGR picture).
    """

    def __init__(
        self, family: Family, paths: Sequence[str], frames: int | None = None, option: str = '--images'
    ) -> None:
        """Refuse invalid samples, before the weights load.

        Args:
            family: whose samples they are.
            paths: files and folders; none takes those of the data set, generated ones, or the toy's picture.
            frames: how many frames or sweeps are taken.
            option: that gave the files, for messages.
        """
        from mmdeploy_ext.proving.inputs.samples import check_given

        takes_pictures = family.samples == 'images'
        self.paths = paths
        self.files = picture_files(paths or [DEFAULT_PICTURE]) if takes_pictures else []
        self.pictures = read_images(self.files)
        self.count = 0 if takes_pictures else check_given(family, paths, frames, option)

    def of(self, deployment: Deployment) -> tuple[Collection[Any], str]:
        """Return the samples, and where frames and sweeps are from."""
        from mmdeploy_ext.proving.inputs.samples import proof_samples

        return (self.pictures, '') if self.pictures else proof_samples(deployment, self.count, self.paths)
