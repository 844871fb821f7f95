"""Images to calibrate on: files, folders or a data set in COCO's format, prepared as the model file says.

Needs numpy and OpenCV only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmdeploy_ext.core.errors import DataError, ModelFileError
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.inputs.pictures import PreprocessRule, list_images, read_image
from mmdeploy_ext.runtime.run_images import make_feeds, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.contract.metadata import Metadata

Item = TypeVar('Item')
LISTED = 3
"""Missing images that an error names."""


class CalibrationImages:
    """Feeds of a graph, one image at a time; what a calibration reads.

    Attributes:
        what: the items are, for reports.
        heads: the graph ends in heads, whose last layers stay float.

    Args:
        metadata: of the model file; its rule prepares the images.
        paths: image files.

    Raises:
        ModelFileError: the model takes no single image (cameras of a rig, points).
    """

    what = 'images'
    heads = True

    def __init__(self, metadata: Metadata, paths: list[Path]) -> None:
        if not isinstance(metadata.preprocess, PreprocessRule):
            raise ModelFileError(
                f'a model of family {metadata.family!r} takes more than one image; expected a '
                f'model of one image (ATSS, SOLO, SOLOv2, RT-DETR) or the image backbone of several cameras '
                f'(StreamPETR)'
            )
        self.metadata, self.paths = metadata, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield input name -> array; an image that cannot be read is an ImageError when its turn comes."""
        known = self.metadata.spec.input_names
        for path in self.paths:
            feeds = make_feeds(prepare(self.metadata, read_image(path)), self.metadata)
            yield {name: array for name, array in feeds.items() if name in known}

    def first(self, number: int) -> CalibrationImages:
        """Return the same with at most `number` images, evenly."""
        return CalibrationImages(self.metadata, evenly(self.paths, number))


def image_files(source: str | Path, root: str | Path | None = None) -> list[Path]:
    """Return the images of a source.

    Args:
        source: image, folder, or annotations in COCO's format (.json).
        root: folder of the images that annotations name; without it, where mmdet's layout has them.

    Raises:
        ImageError: no such file, or a folder without an image.
        DataError: annotations without images, or whose images are not there.
    """
    source = Path(source)
    if source.suffix.lower() != '.json':
        return list_images([source])
    content = read_json(source)
    entries = content.get('images') if isinstance(content, dict) else None
    entries = entries if isinstance(entries, list) else ()
    names = [entry.get('file_name') for entry in entries if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: lists no images; expected annotations in COCO's format")
    folder = _folder(source, names[0], root)
    found = [folder / name for name in names]
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise DataError(
            f'{source}: {len(missing)} of {len(names)} images are not there, e.g. '
            f'{", ".join(missing[:LISTED])}; give their folder (--data-root)'
        )
    return found


def _folder(source: Path, name: str, root: str | Path | None) -> Path:
    """Return the folder below which annotations' file names are; `annotations/instances_X.json` means `X`."""
    if root is not None:
        return Path(root)
    beside = source.parent.parent
    places = [source.parent, beside / source.stem.rpartition('_')[2], beside / 'images', beside]
    return next((place for place in places if (place / name).is_file()), places[1])


def evenly(paths: list[Item], limit: int) -> list[Item]:
    """Return at most `limit` of the items, spread over all of them; 0 takes all."""
    if limit <= 0 or limit >= len(paths):
        return paths
    return [paths[index] for index in np.linspace(0, len(paths) - 1, limit).round().astype(int)]
