"""Images to calibrate on: files, folders or a data set in COCO's format, prepared as the model file says.

Needs numpy and OpenCV only.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, ModelFileError
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.preprocess.pictures import PreprocessRule, list_images, read_image
from mmdeploy_ext.runtime.detect import BESIDE, make_feeds, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmdeploy_ext.contract.metadata import Metadata

LISTED = 3
"""Missing images that an error names."""


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """Feeds of a graph, one item at a time; what a calibration reads.

    Attributes:
        items: files of an image, or of a frame of all cameras.
        feeds: item -> input name -> array; an image that cannot be read is an ImageError when its turn comes.
        what: the items are, for reports.
        heads: the graph ends in heads, whose last layers stay float.
    """

    items: list[Any]
    feeds: Callable[[Any], dict[str, np.ndarray]]
    what: str = 'images'
    heads: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.feeds, self.items)

    def first(self, number: int) -> CalibrationSet:
        """Return the same with at most `number` items, evenly."""
        return dataclasses.replace(self, items=evenly(self.items, number))


def calibration_images(metadata: Metadata, paths: list[Path]) -> CalibrationSet:
    """Return image files as the rule of a model file prepares them; ModelFileError: it takes other things."""
    if not isinstance(metadata.preprocess, PreprocessRule):
        raise ModelFileError(
            f'a model of family {metadata.family!r} takes more than one image; expected a model of one '
            f'image, or the image backbone of a model of several cameras'
        )
    _, *others = known = metadata.spec.input_names
    if lacking := [name for name in others if name not in BESIDE]:
        raise ModelFileError(
            f'the graph takes {lacking[0]!r}, which no picture gives; quantise the one of pictures'
        )

    def feeds(path: Path) -> dict[str, np.ndarray]:
        found = make_feeds(prepare(metadata, read_image(path)), metadata)
        return {name: array for name, array in found.items() if name in known}

    return CalibrationSet(paths, feeds)


def image_files(source: str | Path, root: str | Path | None = None) -> list[Path]:
    """Return the images of a source: an image, a folder, or annotations in COCO's format (.json).

    `root` is the folder of the images that annotations name; without it, where mmdet's layout has them.

    Raises:
        ImageError: no such file, or a folder without an image.
        DataError: annotations without images, or whose images are not there.
    """
    source = Path(source)
    if source.suffix.lower() != '.json':
        return list_images([source])
    content = read_json(source)
    entries = content.get('images') if isinstance(content, dict) else ()
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


def evenly(items: list[Any], limit: int) -> list[Any]:
    """Return at most `limit` of the items, spread over all of them; 0 takes all."""
    if limit <= 0 or limit >= len(items):
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, limit).round().astype(int)]
