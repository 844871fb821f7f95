"""Drawn pictures as a film in mp4, or as a folder of PNG files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ImageError, UsageError
from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

OTHER_FILES = ('.avi', '.gif', '.jpg', '.mkv', '.mov', '.png', '.webm')
"""Suffixes of unsupported files."""


def is_video(out: Path) -> bool:
    return out.suffix.lower() == '.mp4'


@contextlib.contextmanager
def open_writer(out: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield the function that writes the next picture, (h, w, 3) uint8 BGR, to a video or a folder `out`."""
    from mmdeploy_ext.runtime.draw import write_picture

    if is_video(out):
        with _open_video(out, fps) as write:
            yield write
        return
    numbers = itertools.count()
    yield lambda image: write_picture(out / f'{next(numbers):04d}.png', image)


@contextlib.contextmanager
def _open_video(out: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    import cv2

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.stem}.') as folder:
        # OpenCV chooses the container by the suffix, so the unfinished file needs a folder, not a suffix
        unfinished, video = Path(folder) / 'video.mp4', cv2.VideoWriter()
        code, sizes = cv2.VideoWriter_fourcc(*'mp4v'), []

        def write(image: np.ndarray) -> None:
            sizes.append(image.shape[1::-1])
            if not video.isOpened() and not video.open(str(unfinished), code, fps, sizes[0]):
                raise UsageError(f'--out {out}: this OpenCV cannot write mp4; name a folder for PNG files')
            if sizes[-1] != sizes[0]:  # OpenCV would leave it out
                raise ImageError(
                    f'a picture of {"x".join(map(str, sizes[-1]))} does not fit the film of '
                    f'{"x".join(map(str, sizes[0]))}; name a folder for PNG files by --out'
                )
            video.write(image)

        try:
            yield write
        finally:
            video.release()
        if unfinished.exists():  # there is none without a picture
            with atomic_path(out) as temporary:
                shutil.move(unfinished, temporary)
