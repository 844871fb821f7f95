"""Images in, pictures with detections out: the library behind tools/onnx."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import (
    DataError,
    EngineError,
    FrozenWarning,
    ImageError,
    InferenceError,
    ModelFileError,
    ShapeError,
    UsageError,
    named,
    one_line,
    printable,
)
from mmdeploy_ext.base.files import check_outputs, check_writable, external_locations, will_write, write_json
from mmdeploy_ext.runtime import film
from mmdeploy_ext.runtime.film import FILMS, is_film

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import cv2
    import numpy as np

    from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
    from mmdeploy_ext.spec.metadata import Metadata


# A film, or the pictures of a camera, through an exported file, to a film with detections.


PROGRESS_S = 2.0
"""Seconds between two lines of progress."""


def plan_film(sources: Sequence[str], out: Path) -> Path:
    """Return the film to write."""
    if len(sources) > 1:
        raise UsageError(f'{" ".join(sources)}: expected one film or camera')
    if out.suffix and not film.is_video(out) and not out.is_dir():
        raise UsageError(f'--out {out}: expected a folder, or a .mp4 file, for a film')
    source = Path(sources[0])
    target = out if film.is_video(out) and not out.is_dir() else out / f'{source.stem}_det.mp4'
    check_outputs({'--out': [target]}, {'the film': [source] if source.is_file() else []})
    return target


def run_film(
    args: argparse.Namespace,
    backend: OnnxRuntimeBackend,
    target: Path,
    cameras: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Draw the results of each picture and return its --json entry; Ctrl-C ends the film of a camera."""
    from mmdeploy_ext.runtime import draw
    from mmdeploy_ext.runtime.detect import detect
    from mmdeploy_ext.runtime.preprocess.cam2img import camera_for

    source, classes = args.images[0], backend.metadata.classes
    is_camera = film.is_camera(source)
    cam2img = camera_for(cameras, Path(source)) if cameras else None
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


DEFAULT_OUT = Path('work_dirs/onnx_results')
UNUSABLE = (ImageError, DataError, ShapeError, InferenceError, MemoryError)
"""Errors of a single sample."""
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
OTHER_PICTURES = '.gif', '.bmp', '.tif', '.tiff', '.webp', '.avif', '.heic', '.jp2', '.ppm', '.pgm', '.svg'
OTHER_SUFFIXES = (*OTHER_PICTURES, *FILMS, '.pdf', '.json')


def main(argv: Sequence[str] | None = None, runner: str = 'run', description: str = '') -> int:
    return cli.run(lambda args: run_files(args, runner), make_parser(description), argv)


def make_parser(
    description: str,
    model: str = '',
    images: str = 'image files or folders, a film, the index of a camera, or the address of one',
) -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=description)
    parser.add_argument('model', help=model or f'ONNX file written by {tool("export")}')
    parser.add_argument('images', nargs='+', help=images)
    text = (
        'folder for the drawn images (NAME_det); a .jpg or .png file for one image, an .mp4 file for a '
        'film (default: %(default)s). Small images are drawn enlarged; --json has pixels of the original'
    )
    cli.add(parser, '--out PATH', text, DEFAULT_OUT, writes='')
    text = 'draw and count boxes of at least this score, 0..1 (default: %(default)s)'
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S', help=text)
    parser.add_argument(
        '--json', metavar='FILE', help='write all detections as JSON, including those below --score-thr'
    )
    text = (
        'execution providers of ONNX Runtime in order, e.g. CUDAExecutionProvider; a missing one is an error'
    )
    providers = ['CPUExecutionProvider']
    parser.add_argument('--providers', nargs='+', default=providers, metavar='NAME', help=text)
    text = (
        "3D boxes from images: JSON file with the camera's intrinsic matrix, or one matrix per file name, "
        'or *_mono3d.coco.json of a data set'
    )
    parser.add_argument('--cameras', metavar='FILE', help=text)
    text = "threads within an operator, 1 or more (default: ONNX Runtime's choice)"
    parser.add_argument('--threads', type=int, metavar='N', help=text)
    text = (
        "treat an image as unusable where the file's output 'valid' is false: traced code would have taken "
        'another branch (default: warn)'
    )
    parser.add_argument('--strict', action='store_true', help=text)
    text = 'stop at the first unusable sample (default: continue and exit with status 1)'
    parser.add_argument('--fail-fast', action='store_true', help=text)
    return parser


def run_files(args: argparse.Namespace, runner: str) -> int:
    check_options(args)
    try:
        importlib.import_module('onnxruntime')
        from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
    except ImportError as error:
        raise EngineError(
            f'{error.name} is not installed; this tool needs: pip install numpy '
            f'opencv-python-headless onnxruntime'
        ) from error
    from mmdeploy_ext.runtime.preprocess.cam2img import read_cameras

    films = [source for source in args.images if is_film(source)]
    film_out = plan_film(args.images, args.out) if films else None
    targets = {} if films else plan_pictures(args.images, args.out)
    check_targets(args, targets.values() if film_out is None else [film_out])
    check_damage([args.model])
    cameras = read_cameras(args.cameras) if args.cameras else {}
    threads = args.threads or 0
    with OnnxRuntimeBackend(args.model, args.providers, threads, spinning='run') as backend:
        check_file(args.model, backend.metadata, runner)
        check_cameras(args, backend.metadata)
        start = time.perf_counter()
        if film_out is not None:
            entries = run_film(args, backend, film_out, cameras)
        else:
            strict = getattr(args, 'strict', False)
            settings = dict(score_thr=args.score_thr, cameras=cameras, strict=strict)
            run_sample = functools.partial(run_file, backend, **settings)
            entries = run_all(targets, run_sample, 'image', args.fail_fast)
        kind = 'frames' if films else 'images'
        return finish(args, backend.metadata, entries, time.perf_counter() - start, kind)


def check_damage(files: Sequence[str | Path]) -> None:
    """Raise ModelFileError for damaged files; note on stderr those that another tool has rewritten."""
    from mmdeploy_ext.spec.digest import check_whole

    for file in files:
        if note := check_whole(file):
            for name in external_locations(Path(file)):
                if not (Path(file).parent / name).is_file():
                    raise ModelFileError(
                        f'{file}: {name}, which has its weights, is not beside it: copy both'
                    )
            print(f'note: {note}', file=sys.stderr)


def plan_pictures(
    inputs: Sequence[str],
    out: Path,
    list_files: Callable[[Sequence[Path]], list[Path]] | None = None,
    kind: str = 'image',
) -> dict[Path, Path]:
    """Image -> picture to write, all paths distinct; in a folder `out` names get `_det`."""
    from mmdeploy_ext.runtime.preprocess.pictures import list_images

    if out.suffix.lower() in OTHER_SUFFIXES and not out.is_dir():
        raise UsageError(f'--out {out}: expected a folder, or a .jpg or .png file for one image')

    relative = {
        file: file.relative_to(path) if path.is_dir() else Path(file.name)
        for path in map(Path, inputs)
        for file in (list_files or list_images)([path])
    }
    is_file = out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir()
    if is_file and len(relative) > 1:
        raise UsageError(f'--out {out}: is one file for {len(relative)} {kind}s; name a folder')
    targets: dict[Path, Path] = {}
    names: set[Path] = set()
    for file, name in relative.items():
        suffix = file.suffix.lower() if file.suffix.lower() in PICTURE_SUFFIXES else '.png'
        target, attempt = out / name.parent / f'{name.stem}_det{suffix}', 2
        while target in names:
            target, attempt = target.with_name(f'{name.stem}_det_{attempt}{suffix}'), attempt + 1
        targets[file] = out if is_file else target
        names.add(target)
    regular = [file for file in targets if file.is_file()]  # others are reported when they are read
    check_outputs({'--out': targets.values()}, {f'an input {kind}': regular})
    return targets


def check_options(args: argparse.Namespace) -> None:
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: expected a value in 0..1')
    if args.threads is not None and args.threads < 1:
        raise UsageError(f'--threads {args.threads}: expected 1 or more; without it ONNX Runtime chooses')


def check_targets(args: argparse.Namespace, targets: Collection[Path]) -> None:
    """Raise UsageError for outputs that cannot be written, or are inputs."""
    will_write('--out', targets)
    for target in (*targets, *([args.json] if args.json else [])):
        check_writable(target)


def finish(
    args: argparse.Namespace,
    metadata: Metadata,
    entries: list[dict[str, Any]],
    seconds: float,
    kind: str = '',
) -> int:
    """Write `--json` and print the number of drawn detections; return the exit status."""
    kind = kind or metadata.samples
    if args.json:
        facts = dict(model=args.model, family=metadata.family, form=metadata.form)
        write_json(args.json, {**facts, 'classes': list(metadata.classes), kind: entries})
    if len(entries) > 1:
        drawn = sum(entry.get('drawn', 0) for entry in entries)
        print(f'{len(entries)} {kind}, {drawn} detections, {seconds:.1f} s')
    failed = sum('error' in entry for entry in entries)
    if failed:
        print(f'error: {failed} of {len(entries)} {kind} could not be used; see above', file=sys.stderr)
    return 1 if failed else 0


def check_file(path: str, metadata: Metadata, runner: str) -> None:
    """Raise ModelFileError for a file of another tool or an unregistered family."""
    from mmdeploy_ext.runtime.detect import check_registered, runner_of

    check_registered(metadata.family)
    expected = runner_of(metadata.family, metadata.form, metadata.spec.input_names)
    if not expected or expected != runner:
        advice = f'use {tool(expected)} for it' if expected else 'no tool for images supports it'
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}, with the form {metadata.form!r}, which '
            f'{tool(runner or "run")} does not support; {advice}'
        )
    check_picture_graph(path, metadata)
    if metadata.options.get('score_form') == 'product':
        print(
            'note: score_form=product: the threshold applies to class score times centerness, so it may '
            'keep fewer boxes than PyTorch',
            file=sys.stderr,
        )


def check_picture_graph(path: str, metadata: Metadata) -> None:
    """Raise ModelFileError for a graph or rule that is not of pictures."""
    from mmdeploy_ext.spec.metadata import damaged
    from mmdeploy_ext.spec.preparation import PreprocessRule

    first, rule = metadata.spec.inputs[0], metadata.preprocess
    if not isinstance(rule, PreprocessRule):
        raise damaged(path, 'preprocess', 'is for several cameras or LiDAR, expected the rule of one image')
    is_normalised = len(first.axes) == 4 and first.axes[1] == rule.bands and first.dtype.startswith('float')
    if first.pixels is None and not is_normalised:
        problem = f'inputs[0] is {first.dtype} {first.shape_text()}, expected images Bx{rule.bands}xHxW'
        raise damaged(path, 'spec', problem)


def check_cameras(args: argparse.Namespace, metadata: Metadata) -> None:
    """Raise UsageError for missing or superfluous `--cameras`."""
    from mmdeploy_ext.runtime.detect import camera_of

    takes_cameras = bool(camera_of(metadata))
    if takes_cameras and not args.cameras:
        raise UsageError(
            f'{args.model}: finds 3D boxes and needs the camera matrix of each image; pass a JSON file '
            'with --cameras, such as [[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]'
        )
    if args.cameras and not takes_cameras:
        raise UsageError(f'--cameras {args.cameras}: {args.model} does not use cameras')


def run_file(
    backend: OnnxRuntimeBackend,
    source: Path,
    target: Path,
    score_thr: float,
    cameras: Mapping[str, np.ndarray],
    strict: bool = False,
) -> dict[str, Any]:
    """Detect, draw and write one image; return its JSON entry, `detections` in pixels of the original."""
    from mmdeploy_ext.runtime import draw
    from mmdeploy_ext.runtime.detect import detect
    from mmdeploy_ext.runtime.preprocess.cam2img import camera_for
    from mmdeploy_ext.runtime.preprocess.pictures import read_image

    image = read_image(source, backend.metadata.preprocess.color_type)
    cam2img = camera_for(cameras, source) if cameras else None
    start = time.perf_counter()
    with named(source), warnings.catch_warnings():
        warnings.simplefilter('error', FrozenWarning)
        try:
            results = detect(backend, image, cam2img)
        except FrozenWarning as error:
            if strict:
                raise InferenceError(one_line(error)) from error
            print(f'warning: {source}: {one_line(error)}', file=sys.stderr)
            warnings.simplefilter('ignore', FrozenWarning)
            results = detect(backend, image, cam2img)
    milliseconds = (time.perf_counter() - start) * 1000
    classes = backend.metadata.classes
    shown = draw.enlarged(draw.visible(image), results)
    picture = draw.draw_results(backend.metadata.family, *shown, classes, score_thr)
    draw.write_picture(target, picture)
    return dict(
        image=str(source),
        picture=str(target),
        height=image.shape[0],
        width=image.shape[1],
        milliseconds=round(milliseconds, 2),
        drawn=len(results.above(score_thr)),
        detections=results.to_json(classes),
    )


def run_all(
    targets: Mapping[Path, Path],
    run_sample: Callable[[Path, Path], dict[str, Any]],
    kind: str,
    fail_fast: bool = False,
) -> list[dict[str, Any]]:
    """Run samples with a line each; return their JSON entries."""
    fail_fast, entries = fail_fast or len(targets) == 1, []
    for source, target in targets.items():
        run = functools.partial(run_sample, source, target)
        entries.append(usable(run, {kind: str(source)}, fail_fast))
        report(source, entries[-1])
    return entries


def usable(
    run_sample: Callable[[], dict[str, Any]], facts: Mapping[str, Any], fail_fast: bool
) -> dict[str, Any]:
    try:
        return run_sample()
    except UNUSABLE as error:
        if fail_fast:
            raise
        return dict(facts, error=one_line(error) or type(error).__name__)


def report(name: object, entry: Mapping[str, Any]) -> None:
    if 'error' in entry:
        print(f'error: {printable(entry["error"])}', file=sys.stderr, flush=True)
    else:
        print(result_line(name, entry), flush=True)


def result_line(source: object, entry: Mapping[str, Any]) -> str:
    drawn = entry['drawn']
    count = f'{drawn} detection' if drawn == 1 else f'{drawn} detections'
    return printable(f'{source}: {count}, {entry["milliseconds"]:.0f} ms -> {entry["picture"]}')
