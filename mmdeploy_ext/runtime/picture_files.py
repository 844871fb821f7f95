"""Folders and names of the pictures that a run writes. Needs numpy and OpenCV only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, check_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
OTHER_SUFFIXES = (
    *('.gif', '.bmp', '.tif', '.tiff', '.webp', '.avif', '.heic', '.jp2', '.ppm', '.pgm', '.svg', '.pdf'),
    *('.mp4', '.avi', '.mkv', '.mov', '.json'),
)
"""Names of files, not of folders, that are not written here."""


def plan_pictures(
    inputs: Sequence[str],
    out: Path,
    list_files: Callable[[Sequence[Path]], list[Path]] | None = None,
    kind: str = 'picture',
) -> dict[Path, Path]:
    """Return image -> picture to write; no two pictures and no picture and image share a name.

    Args:
        inputs: files and folders.
        out: folder, or file for one image.
        list_files: returns the files of one input; None: images.
        kind: what one of them is called.

    Raises:
        UsageError: `out` names one file for several images, an image itself, or a kind of file that is not
            written.
    """
    from mmdeploy_ext.inputs.pictures import list_images

    if out.suffix.lower() in OTHER_SUFFIXES and not out.is_dir():
        raise UsageError(f'--out {out}: expected a folder, or a .jpg or .png file for one image')

    relative = {
        file: file.relative_to(path) if path.is_dir() else Path(file.name)
        for path in map(Path, inputs)
        for file in (list_files or list_images)([path])
    }
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        if len(relative) > 1:
            raise UsageError(f'--out {out}: is one file, for {len(relative)} {kind}s; give a folder')
        targets = dict.fromkeys(relative, out)
    else:
        targets = {}
        for file, name in relative.items():
            suffix = file.suffix.lower() if file.suffix.lower() in PICTURE_SUFFIXES else '.png'
            targets[file] = _free(out / name.parent, name.stem, suffix, set(targets.values()))
    check_outputs({'--out': targets.values()}, {f'a {kind}': targets})
    return targets


def _free(folder: Path, stem: str, suffix: str, taken: set[Path]) -> Path:
    target, number = folder / f'{stem}_det{suffix}', 2
    while target in taken:
        target, number = folder / f'{stem}_det_{number}{suffix}', number + 1
    return target


def write_picture(path: Path, picture_bgr: np.ndarray) -> None:
    """Write a picture atomically: PNG where its name says so, else JPEG."""
    from mmdeploy_ext.runtime.draw import encode_jpeg, encode_png

    with atomic_path(path) as temporary:
        temporary.write_bytes((encode_png if path.suffix.lower() == '.png' else encode_jpeg)(picture_bgr))
