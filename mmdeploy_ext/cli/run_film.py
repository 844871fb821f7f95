"""A film, or the pictures of a camera, through an exported file, to a film with detections."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ImageError, UsageError, named
from mmdeploy_ext.base.files import check_outputs
from mmdeploy_ext.runtime import film

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import cv2
    import numpy as np

    from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend

PROGRESS_S = 2.0
"""Seconds between two lines of progress."""


def plan_film(sources: Sequence[str], out: Path) -> dict[Path, Path]:
    """Film -> film to write."""
    if len(sources) > 1:
        raise UsageError(f'{" ".join(sources)}: expected one film or camera')
    if out.suffix and not film.is_video(out) and not out.is_dir():
        raise UsageError(f'--out {out}: expected a folder, or a .mp4 file, for a film')
    source = Path(sources[0])
    target = out if film.is_video(out) and not out.is_dir() else out / f'{source.stem}_det.mp4'
    check_outputs({'--out': [target]}, {'the film': [source] if source.is_file() else []})
    return {source: target}


def run_film(
    args: argparse.Namespace,
    backend: OnnxRuntimeBackend,
    targets: Mapping[Path, Path],
    cameras: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Draw the results of each picture and return its --json entry; Ctrl-C ends the film of a camera."""
    from mmdeploy_ext.runtime import draw
    from mmdeploy_ext.runtime.detect import detect
    from mmdeploy_ext.runtime.preprocess.cam2img import camera_for

    ((path, target),) = targets.items()
    source, classes = str(path), backend.metadata.classes
    is_camera = film.is_camera(source)
    cam2img = camera_for(cameras, path) if cameras else None
    stopped = contextlib.suppress(KeyboardInterrupt) if is_camera else contextlib.nullcontext()
    entries: list[dict[str, Any]] = []
    with film.open_film(source) as capture:
        fps, total = film.frames_per_second(capture), film.frame_count(capture)
        begun = shown = time.perf_counter()
        written = 0
        with film.open_writer(target, fps) as add_to_film, stopped:
            while (picture := next_picture(capture, backend.metadata.preprocess.color_type)) is not None:
                start = time.perf_counter()
                with named(f'{source}: frame {len(entries)}'):
                    results = detect(backend, picture, cam2img)
                now = time.perf_counter()
                entry = dict(frame=len(entries), milliseconds=round((now - start) * 1000, 2))
                entry['drawn'] = len(results.above(args.score_thr))
                if args.json:
                    entry['detections'] = results.to_json(classes)
                entries.append(entry)
                drawn = draw.draw_results(
                    backend.metadata.family, *draw.enlarged(picture, results), classes, args.score_thr
                )
                # a camera drops what comes while the model runs: the film keeps its time
                copies = max(round((now - begun) * fps) - written, 1) if is_camera else 1
                for _ in range(copies):
                    add_to_film(drawn)
                written += copies
                if now - shown > PROGRESS_S:
                    shown = now
                    report_progress(len(entries), total, len(entries) / (now - begun))
    if not entries:
        raise ImageError(f'{source}: has no image that OpenCV can decode')
    if len(entries) < total:
        print(f'note: {source} ends after {len(entries)} of {total} frames', file=sys.stderr)
    print(f'{source}: {len(entries) / (time.perf_counter() - begun):.1f} frames/s -> {target}')
    return entries


def next_picture(capture: cv2.VideoCapture, color_type: str) -> np.ndarray | None:
    """Return the next picture (h, w, 3) uint8 BGR; None after the last."""
    import cv2

    found, picture = capture.read()
    if not found:
        return None
    if color_type == 'grayscale':
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return picture


def report_progress(done: int, total: int, rate: float) -> None:
    of_total = f' of {total}' if total else ''
    end = '\r' if sys.stderr.isatty() else '\n'
    print(f'frame {done}{of_total}, {rate:.1f} frames/s', end=end, file=sys.stderr, flush=True)
