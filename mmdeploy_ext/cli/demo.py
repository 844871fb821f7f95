"""Shared by the tools that draw boxes in 3D: both engines, their options, pictures and films."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UNPRINTABLE, ImageError, UsageError
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT, title_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.tasks.results import Pair

ENGINES = {'torch': title_of(BASELINE), 'onnx': DEFAULT.title}
"""Value of --engine, but for 'both' -> title of the engine."""
OTHER_FILES = ('.avi', '.gif', '.jpg', '.mkv', '.mov', '.png', '.webm')
"""Suffixes of files that hold no film here; --out of several pictures would make a folder of that name."""


def add_options(parser: argparse.ArgumentParser, engine: str | None, engine_text: str) -> None:
    """Add --engine, --score-thr, --cfg-options and --threads."""
    add = cli.adder(parser)
    add('--engine', f'engine to run (default: {engine_text})', engine, choices=(*ENGINES, 'both'))
    add('--score-thr S', 'draw boxes of at least this score, 0..1 (default: %(default)s)', 0.3)
    add('--cfg-options KEY=VALUE...', shared.CFG_OPTIONS_HELP)
    add('--threads N', 'threads of ONNX Runtime', 0)


def check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for `args.score_thr` outside of 0..1, or `args.threads` below 0."""
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: expected a value in 0..1')
    cli.check_minimums(args, threads=0)


def draw_boxes(
    pair: Pair, detections: Mapping[str, Detections3D], classes: Sequence[str], score_thr: float
) -> np.ndarray:
    """Return the pictures of a sample in one, (h, w, 3) uint8 BGR, with the boxes of one or both engines.

    Args:
        pair: the sample, with the boxes of both engines if there are two.
        detections: key of `ENGINES` -> boxes, of one engine or of both.
        classes: names, by label.
        score_thr: boxes of a smaller score are not drawn.
    """
    from mmdeploy_ext.runtime.bird_eye import BoxLayer
    from mmdeploy_ext.tasks import bbox3d

    if len(detections) == 2:
        return bbox3d.draw_pair(pair, classes, score_thr)
    layers = [BoxLayer(ENGINES[name], boxes.above(score_thr)) for name, boxes in detections.items()]
    return bbox3d.draw_layers(pair, layers, classes)


def is_video(out: Path) -> bool:
    """Return whether an output is one video file: its suffix is .mp4, in small or capital letters."""
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

    if UNPRINTABLE.search(os.path.realpath(out)):  # OpenCV ends in a crash
        raise UsageError(f'--out {out}: OpenCV writes no film under a name that cannot be printed')
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
            unfinished.replace(out)
