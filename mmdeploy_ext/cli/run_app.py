"""`mm2onnx run`: an exported model on pictures, LiDAR sweeps or frames of several cameras."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import DataError, ModelFileError, UsageError, named
from mmdeploy_ext.cli import run_images
from mmdeploy_ext.runtime import film
from mmdeploy_ext.runtime.detect import check_registered, has_runtime, opener, runner_of
from mmdeploy_ext.runtime.exported import Runtime, model_files
from mmdeploy_ext.runtime.points import SWEEP_SUFFIXES
from mmdeploy_ext.spec.metadata import PREFIX, Metadata

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from mmdeploy_ext.runtime.infos import RigFrame

TAKES = dict(
    images='images, image folders, a film, a camera index, or rtsp://...',
    sweeps='LiDAR sweeps (raw float32 points in .bin, or .npy, .pcd), or folders of them',
    frames="frames of several cameras: infos in mmdet3d's format (.pkl or .json)",
    fused="frames of several cameras and a LiDAR: infos in mmdet3d's format (.pkl or .json)",
)
ENDINGS = dict(sweeps=SWEEP_SUFFIXES, frames=('.pkl', '.json'))
"""Suffixes by kind of samples; all others are pictures."""
OF_INFOS = ('frames', 'fused')
"""Kinds of samples that are read from infos."""
FPS = 4.0
"""Frames per second of a film."""
NOTE_AFTER_S = 2.0
"""Seconds after which the note of `once` is printed."""
COMPILING = 'note: compiling functions for points (10 s, once per machine)'
NOT_COMPILED = "note: points run in plain Python, which is slow; pip install 'mm2onnx[lidar]' compiles it"


def build_parser() -> argparse.ArgumentParser:
    parser = run_images.make_parser(
        'Run an exported model in ONNX Runtime and draw its detections.',
        'ONNX file, or folder of graphs, that mm2onnx exported',
        f'{TAKES["images"]}; {TAKES["sweeps"]}; {TAKES["frames"]}, drawn to a folder or an .mp4 file',
    )
    cli.add(parser, '--data-root DIR', 'frames: folder of the data set (default: the folder of the infos)')
    cli.add(
        parser,
        '--black-if-missing',
        'frames: use a black image for a missing image file instead of failing',
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.spec.metadata import Metadata, read_props

    run_images.check_options(args)
    files = model_files(args.model)
    props = read_props(files[-1])
    if f'{PREFIX}voxels' in props:
        raise ModelFileError(
            f'{files[-1]}: is a sparse backbone, which has no boxes to draw; use it in a '
            f'program (mmdeploy_ext.runtime.sparse_encoder.ScnOnnx, docs/models-lidar.md)'
        )
    metadata = Metadata.from_props(props, files[-1])
    check_inputs(args, metadata.samples)
    return RUNS[metadata.samples](args, metadata)


def check_inputs(args: argparse.Namespace, samples: str) -> None:
    """Raise UsageError for files of another kind than the model takes."""
    for path in map(Path, args.images):
        suffix = path.suffix.lower()
        kind = next((name for name, endings in ENDINGS.items() if suffix in endings), 'images')
        if suffix == '.npy' and samples == 'images':  # of pictures with more than three bands
            kind = 'images'
        fits = samples in OF_INFOS if kind == 'frames' else kind == samples
        if not fits and not (path.is_dir() and samples not in OF_INFOS):
            raise UsageError(f'{path}: {args.model} expects {TAKES[samples]}')


def opened(args: argparse.Namespace, metadata: Metadata) -> Runtime:
    """Open a model of sweeps or frames by `OPENS` of its family's runtime module."""
    check_registered(metadata.family)
    opens = opener(metadata) if has_runtime(metadata.family) else None
    if opens is None:
        raise ModelFileError(
            f'{args.model}: family {metadata.family!r} returns no boxes to draw; '
            f'mm2onnx info shows its outputs'
        )
    run_images.check_damage(model_files(args.model))
    return opens(args.model, providers=args.providers, threads=args.threads or 0)


def run_pictures(args: argparse.Namespace, metadata: Metadata) -> int:
    """Draw the results of each picture; 1 if a picture could not be used."""
    files = model_files(args.model)
    if len(files) > 1:
        raise ModelFileError(f'{args.model}: has {len(files)} image models; name one of the files')
    args.model = str(files[0])
    runner = runner_of(metadata.family, metadata.form, metadata.spec.input_names)
    return run_images.run_files(args, runner)


def list_sweeps(paths: Iterable[Path]) -> list[Path]:
    """Files in the order of `paths`; a folder gives its sweeps, sorted."""
    sweeps: list[Path] = []
    for path in paths:
        found = (file for file in path.rglob('*') if file.suffix.lower() in SWEEP_SUFFIXES)
        inside = sorted(found) if path.is_dir() else [path]
        if not inside:
            raise DataError(f'{path}: no sweep ({", ".join(SWEEP_SUFFIXES)}) in this folder')
        sweeps += inside
    return sweeps


def run_sweeps(args: argparse.Namespace, metadata: Metadata) -> int:
    """Draw the boxes of each sweep from above; 1 if a sweep could not be used."""
    from mmdeploy_ext.runtime.bird_eye import BoxLayer
    from mmdeploy_ext.runtime.detections import check_ranges
    from mmdeploy_ext.runtime.draw import write_picture
    from mmdeploy_ext.runtime.draw3d import sweep_picture
    from mmdeploy_ext.runtime.points import read_points

    targets = run_images.plan_pictures(args.images, args.out, list_sweeps, 'sweep')
    run_images.check_targets(args, targets.values())
    with opened(args, metadata) as model:
        compile_loops = once()

        def run_one(source: Path, target: Path) -> dict[str, Any]:
            points = read_points(source, model.width)
            with named(source):
                compile_loops(lambda: model.detect(points))
                start = time.perf_counter()
                detections = model.detect(points)
                check_ranges(detections, len(model.classes), args.model)
            entry = entry_of(dict(sweep=str(source)), target, start, detections, args, model.classes)
            title = f'{len(points)} points, {source.name}'  # a long name is cut at its end
            layer = BoxLayer('ONNX Runtime', detections.above(args.score_thr))
            write_picture(target, sweep_picture(title, points, [layer], model.classes))
            return entry

        start = time.perf_counter()
        entries = run_images.run_all(targets, run_one, 'sweep', args.fail_fast)
        return run_images.finish(args, metadata, entries, time.perf_counter() - start)


def run_frames(args: argparse.Namespace, metadata: Metadata) -> int:
    """Draw boxes of each frame into the cameras and from above; 1 if a frame could not be used."""
    from mmdeploy_ext.runtime.bird_eye import BoxLayer
    from mmdeploy_ext.runtime.detections import Scored, check_ranges
    from mmdeploy_ext.runtime.draw import write_picture
    from mmdeploy_ext.runtime.draw3d import compare_picture, in_drawn_order
    from mmdeploy_ext.runtime.infos import read_frames

    video = film.is_video(args.out)
    if not video and args.out.suffix.lower() in film.OTHER_FILES and not args.out.is_dir():
        raise UsageError(f'--out {args.out}: is a file, expected a name in .mp4 or a folder')
    rule = getattr(metadata.preprocess, 'views', metadata.preprocess)
    if rule is None:
        raise ModelFileError(
            f'{args.model}: is a LiDAR-only model of several graphs; use it in a program (pass points '
            'to step())'
        )
    frames = [
        frame
        for path in args.images
        for frame in read_frames(path, rule, args.data_root, args.black_if_missing)
    ]
    targets = [args.out if video else args.out / f'{number:04d}.png' for number in range(len(frames))]
    run_images.check_targets(args, dict.fromkeys(targets))
    entries, begun = [], time.perf_counter()
    fail_fast = args.fail_fast or len(frames) == 1
    most_cameras = max((len(frame.pictures) for frame in frames), default=0)
    cameras = getattr(rule, 'cameras', ()) or tuple(map(str, range(most_cameras)))
    writer = film.open_writer(args.out, FPS) if video else contextlib.nullcontext()
    with opened(args, metadata) as model, writer as add_to_film:
        draw = (lambda target, picture: add_to_film(picture)) if video else write_picture
        compile_loops = once()

        def run_one(frame: RigFrame, target: Path, facts: dict[str, Any]) -> dict[str, Any]:
            images = frame.read_pictures()
            with named(f'{frame.source}: {frame.name}'):
                if metadata.samples == 'fused':
                    compile_loops(lambda: model.step(model.moment(images, frame, args.data_root)))
                start = time.perf_counter()
                moment = model.moment(images, frame, args.data_root)
                detections = model.step(moment).detections
                if isinstance(detections, Scored):
                    check_ranges(detections, len(model.classes), args.model)
            entry = entry_of(facts, target, start, detections, args, model.classes)
            views = in_drawn_order(images, model.in_box_frame(frame).lidar2img, cameras)
            if hasattr(detections, 'frame_picture'):
                picture = detections.frame_picture(*views, model.classes, frame.name)
            else:
                layer = BoxLayer('ONNX Runtime', detections.above(args.score_thr))
                points = getattr(moment, 'points', None)
                picture = compare_picture(*views, [layer], model.classes, frame.name, points)
            draw(target, picture)
            return entry

        for frame, target in zip(frames, targets, strict=True):
            facts: dict[str, Any] = dict(frame=frame.name, scene=frame.scene_token)
            if black := [name for name, path in zip(cameras, frame.pictures, strict=True) if path is None]:
                facts['black'] = black
            run_frame = functools.partial(run_one, frame, target, facts)
            entries.append(run_images.usable(run_frame, facts, fail_fast))
            name = f'{frame.name} ({", ".join(black)} black)' if black else frame.name
            run_images.report(name, entries[-1])
        for note in model.notes:
            print(f'note: {note}', file=sys.stderr)
    return run_images.finish(args, metadata, entries, time.perf_counter() - begun, 'frames')


def once() -> Callable[[Callable[[], Any]], None]:
    """A function that calls its argument in the first call only; a note says why that is slow."""
    done: list[bool] = []
    note = COMPILING if importlib.util.find_spec('numba') else NOT_COMPILED

    def run_first(function: Callable[[], Any]) -> None:
        if done:
            return
        timer = threading.Timer(NOTE_AFTER_S, print, [note], dict(file=sys.stderr, flush=True))
        timer.start()
        try:
            function()
            done.append(True)
        finally:
            timer.cancel()

    return run_first


RUNS = dict(images=run_pictures, sweeps=run_sweeps, frames=run_frames, fused=run_frames)


def entry_of(
    facts: dict[str, Any],
    target: Path,
    start: float,
    detections: Any,
    args: argparse.Namespace,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The --json entry of a sample."""
    return dict(
        **facts,
        picture=str(target),
        milliseconds=round((time.perf_counter() - start) * 1000, 2),
        drawn=len(detections.above(args.score_thr)),
        detections=detections.to_json(classes),
    )


main = cli.program(run, build_parser)
