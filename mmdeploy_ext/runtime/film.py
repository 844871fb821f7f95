"""Films and cameras that OpenCV reads; drawn pictures as a film in mp4, or as a folder of PNG files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import ImageError, UsageError
from mmdeploy_ext.base.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import cv2
    import numpy as np

OTHER_FILES = ('.avi', '.gif', '.jpg', '.mkv', '.mov', '.png', '.webm')
"""Suffixes of unsupported files."""

FILMS = ('.mp4', '.avi', '.m4v', '.mkv', '.mov', '.mpeg', '.mpg', '.webm', '.wmv')
"""Suffixes of films that are read."""
CODES = 'avc1', 'vp09', 'mp4v'
"""Codecs of a film in the order in which they are tried; browsers play the first two."""
STREAMS = 'rtsp://', 'rtsps://', 'rtmp://', 'http://', 'https://', 'udp://'
"""Beginnings of the address of a network camera."""
DEFAULT_FPS = 30.0
"""Frames per second of a source that states none."""


def is_video(out: Path) -> bool:
    return out.suffix.lower() == '.mp4'


def is_camera(source: str) -> bool:
    """Return whether a word is the index of a camera, or the address of one."""
    return source.startswith(STREAMS) or (source.isdecimal() and not Path(source).exists())


def is_film(source: str) -> bool:
    """Return whether a word is a film or a camera."""
    return is_camera(source) or (Path(source).suffix.lower() in FILMS and not Path(source).is_dir())


@contextlib.contextmanager
def open_film(source: str) -> Iterator[cv2.VideoCapture]:
    """Open a film or a camera; ImageError: missing, or not one that OpenCV can read."""
    import cv2

    if not is_camera(source) and not Path(source).is_file():
        raise ImageError(f'{source}: no such film')
    level = cv2.setLogLevel(0)  # the error says it in one line
    try:
        file = source if is_camera(source) else str(Path(source).absolute())
        capture = cv2.VideoCapture(int(file) if file.isdecimal() else file)
    finally:
        cv2.setLogLevel(level)
    try:
        if not capture.isOpened():
            what = 'no such camera' if is_camera(source) else 'is damaged or not a film that OpenCV can read'
            raise ImageError(f'{source}: {what}')
        yield capture
    finally:
        capture.release()


def frames_per_second(capture: cv2.VideoCapture) -> float:
    import cv2

    stated = capture.get(cv2.CAP_PROP_FPS)
    return stated if 1 <= stated <= 1000 else DEFAULT_FPS


def frame_count(capture: cv2.VideoCapture) -> int:
    """Frames that a film states; 0: none, as a camera."""
    import cv2

    return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


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
        sizes: list[tuple[int, ...]] = []

        def opened(size: tuple[int, ...]) -> bool:
            level = cv2.setLogLevel(0)  # most builds of OpenCV have no H.264, and say so
            try:
                codes = (cv2.VideoWriter_fourcc(*code) for code in CODES)
                return any(video.open(str(unfinished), code, fps, size) for code in codes)
            finally:
                cv2.setLogLevel(level)

        def write(image: np.ndarray) -> None:
            sizes.append(image.shape[1::-1])
            if not video.isOpened() and not opened(sizes[0]):
                raise UsageError(
                    f'--out {out}: this OpenCV cannot write mp4; pass a folder to write PNG files'
                )
            if sizes[-1] != sizes[0]:  # OpenCV would leave it out
                raise ImageError(
                    f'an image of {"x".join(map(str, sizes[-1]))} does not fit the film of '
                    f'{"x".join(map(str, sizes[0]))}; pass a folder to --out to write PNG files'
                )
            video.write(image)

        try:
            yield write
        finally:
            video.release()
        if unfinished.exists():  # there is none without a picture
            with atomic_path(out) as temporary:
                shutil.move(unfinished, temporary)
