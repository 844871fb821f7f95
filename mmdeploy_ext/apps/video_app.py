"""`streampetr_video.py`: a scene of a data set through a streaming model, as a video of boxes."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError, UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Stepper

ENGINES = {'torch': 'PyTorch', 'onnx': 'ONNX Runtime'}
"""--engine -> what people call it."""

OTHER_FILES = ('.avi', '.gif', '.jpg', '.mkv', '.mov', '.png', '.webm')
"""Names that are meant for one file and would become a folder."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Run a scene of data.test through a streaming model and draw its boxes into all cameras '
        'and from above, by PyTorch, by ONNX Runtime, or by both side by side.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; PyTorch needs it')
    parser.add_argument(
        '--onnx', metavar='PATH', help='folder or file that pytorch2onnx.py wrote; ONNX Runtime needs it'
    )
    parser.add_argument(
        '--engine',
        choices=(*ENGINES, 'both'),
        help='who runs (default: both where a checkpoint and --onnx are given, else the one that is)',
    )
    parser.add_argument(
        '--scene', type=int, default=0, metavar='N', help='number of the scene, from 0 (default: %(default)s)'
    )
    parser.add_argument('--frames', type=int, metavar='N', help='only the first N frames (default: all)')
    cli.writes(
        parser.add_argument(
            '--out',
            type=Path,
            required=True,
            metavar='PATH',
            help='a video in .mp4, or a folder for one PNG file per frame',
        )
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='draw boxes of at least this score, 0..1 (default: %(default)s)',
    )
    parser.add_argument(
        '--fps', type=float, default=4.0, metavar='F', help='of the video (default: %(default)s)'
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=shared.CFG_OPTIONS_HELP)
    parser.add_argument('--device', default='cpu', help='where PyTorch runs (default: %(default)s)')
    parser.add_argument(
        '--providers', nargs='+', metavar='EP', help='ONNX Runtime execution providers, in order'
    )
    parser.add_argument('--threads', type=int, default=0, metavar='N', help='threads of ONNX Runtime')
    cli.add_debug_option(parser)
    return parser


def chosen_engines(args: argparse.Namespace) -> list[str]:
    """Return the keys of `ENGINES` to run, PyTorch first.

    Raises:
        UsageError: an engine without its model.
    """
    given = [name for name, model in (('torch', args.checkpoint), ('onnx', args.onnx)) if model]
    if not given:
        raise UsageError('got neither a checkpoint nor --onnx; expected at least one of them')
    wanted = {'both': list(ENGINES), None: given}.get(args.engine, [args.engine])
    for name in wanted:
        if name not in given:
            needed = 'a checkpoint (second argument)' if name == 'torch' else '--onnx PATH'
            raise UsageError(f'--engine {args.engine}: {ENGINES[name]} needs {needed}')
    return wanted


def check_options(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, and an output that cannot be written, before anything is loaded."""
    from mmdeploy_ext.core.files import check_writable

    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: expected a value in 0..1')
    for option, value, least in (('--scene', args.scene, 0), ('--threads', args.threads, 0)):
        if value < least:
            raise UsageError(f'{option} {value}: expected {least} or more')
    if args.frames is not None and args.frames < 1:
        raise UsageError(f'--frames {args.frames}: expected 1 or more')
    if not args.fps > 0:
        raise UsageError(f'--fps {args.fps}: expected more than 0')
    if not is_video(args.out) and (args.out.is_file() or args.out.suffix.lower() in OTHER_FILES):
        raise UsageError(f'--out {args.out}: is a file, expected a name in .mp4 or a folder')
    check_writable(args.out if is_video(args.out) else args.out / 'x.png')


def is_video(out: Path) -> bool:
    """Return whether an output is one video file."""
    return out.suffix.lower() == '.mp4'


@dataclasses.dataclass
class Cast:
    """Who runs, and what it takes to draw it.

    Attributes:
        cfg: the config.
        family: of the model.
        steppers: key of `ENGINES` -> model with its memory.
        classes: names by label.
    """

    cfg: Any
    family: SequenceFamily
    steppers: dict[str, Stepper]
    classes: tuple[str, ...]


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Draw a scene."""
    cli.wait_passively()
    engines = chosen_engines(args)
    check_options(args)
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.loop import scene_tokens

    register()
    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    family = streaming_family(args.config, cfg)
    dataset = evaluation.build_dataset(cfg)
    indices = scene_indices(scene_tokens(dataset), args.scene, args.frames)
    cast = load(args, engines, cfg, family)
    with after_weights():
        summary = draw_scene(cast, dataset, indices, args)
    print(f'{args.out}: {len(indices)} frames of scene {args.scene}; {summary}')
    return 0


def scene_indices(tokens: Sequence[str], scene: int, frames: int | None) -> list[int]:
    """Return the sample indices of a scene in order.

    Raises:
        UsageError: there is no such scene.
    """
    scenes = list(dict.fromkeys(tokens))
    if scene >= len(scenes):
        raise UsageError(
            f'--scene {scene}: the data set has {len(scenes)} scenes, expected 0..{len(scenes) - 1}'
        )
    return [index for index, token in enumerate(tokens) if token == scenes[scene]][:frames]


def streaming_family(config: str, cfg: Any) -> SequenceFamily:
    """Return the family of a config.

    Raises:
        ConfigError: its models have no memory.
    """
    from mmdeploy_ext.families.base import DETECTOR, find_family

    family = find_family(cfg, DETECTOR)
    if not family.memory:
        raise ConfigError(
            f'{config}: family {family.name!r} has no memory; expected a streaming model (LiDAR sweeps are '
            f'drawn by tools/demo/lidar_demo.py)'
        )
    return family


def load(args: argparse.Namespace, engines: Sequence[str], cfg: Any, family: SequenceFamily) -> Cast:
    """Load the models; PyTorch's only where it runs."""
    steppers: dict[str, Stepper] = {}
    classes: tuple[str, ...] = ()
    if 'torch' in engines:
        from mmdeploy_ext.deploy import deployment as deploy

        overrides = shared.parse_cfg_options(args.cfg_options)
        deployment = deploy.load(args.config, args.checkpoint, overrides, args.device)
        steppers['torch'], classes = family.reference(deployment.model), deployment.classes
    if 'onnx' in engines:
        from mmdeploy_ext.deploy.sequence_files import read_files

        files = read_files(args.onnx)
        engine: dict[str, Any] = dict(engine='OnnxRuntimeBackend', threads=args.threads)
        if args.providers:
            engine['providers'] = args.providers
        steppers['onnx'], classes = family.runner(files.paths, engine), files.metadata.classes
    return Cast(cfg, family, steppers, classes)


def draw_scene(cast: Cast, dataset: Any, indices: Sequence[int], args: argparse.Namespace) -> str:
    """Run the frames and write the pictures; return what to say about it."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from mmdeploy_ext.evaluate.loop import frames_of

    rule = cast.family.preprocess_rule(cast.cfg)
    seconds: dict[str, list[float]] = {name: [] for name in cast.steppers}
    console = cli.stderr()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    workers = min(cast.cfg.data.get('workers_per_gpu', 2), 2)
    with bar, open_writer(args.out, args.fps) as write:
        frames = frames_of(cast.family, dataset, indices, workers)
        for number, frame in enumerate(bar.track(frames, len(indices), description='frames')):
            found = {}
            for name, stepper in cast.steppers.items():
                start = time.perf_counter()
                found[name] = stepper.step(frame).detections
                seconds[name].append(time.perf_counter() - start)
            title = f'scene {args.scene}, frame {number + 1} of {len(indices)}'
            write(picture(frame, rule, found, cast.classes, title, args.score_thr))
    times = (f'{ENGINES[name]} {statistics.median(values) * 1e3:.0f} ms' for name, values in seconds.items())
    return f'{", ".join(times)} per frame (median)'


def picture(
    frame: Frame,
    rule: Any,
    found: dict[str, Detections3D],
    classes: Sequence[str],
    title: str,
    score_thr: float,
) -> np.ndarray:
    """Draw one frame: (h, w, 3) uint8 BGR, the same size for all frames of a run.

    Args:
        frame: what the network saw.
        rule: how it was prepared.
        found: key of `ENGINES` -> detections; of two, what differs is marked.
        classes: names by label.
        title: of the frame.
        score_thr: boxes below are left out.
    """
    from mmdeploy_ext.proof.levels.sequence import pictures_bgr
    from mmdeploy_ext.proof.tasks.bbox3d import draw_pair
    from mmdeploy_ext.proof.verdict import FramePair
    from mmdeploy_ext.runtime.bird_eye import Layer
    from mmdeploy_ext.runtime.draw3d import compare_picture

    images = pictures_bgr(frame.images, rule)
    if len(found) == 2:
        pair = FramePair(title, images, frame.lidar2img, found['torch'], found['onnx'], ENGINES['onnx'])
        return draw_pair(pair, classes, score_thr)
    ((name, detections),) = found.items()
    layer = Layer(ENGINES[name], detections.above(score_thr))
    return compare_picture(images, frame.lidar2img, [layer], classes, title)


@contextlib.contextmanager
def open_writer(out: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield what takes one picture after the other; a video appears when it is complete.

    Raises:
        UsageError: this OpenCV cannot write mp4.
    """
    from mmdeploy_ext.core.files import atomic_path
    from mmdeploy_ext.runtime.draw import encode_png

    if is_video(out):
        with _open_video(out, fps) as write:
            yield write
        return
    count = 0

    def write_png(image: np.ndarray) -> None:
        nonlocal count
        with atomic_path(out / f'{count:04d}.png') as temporary:
            temporary.write_bytes(encode_png(image))
        count += 1

    yield write_png


@contextlib.contextmanager
def _open_video(out: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    import cv2

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.stem}.') as folder:
        # OpenCV chooses the container by the suffix, so the unfinished file needs a folder, not a suffix
        unfinished = Path(folder) / 'video.mp4'
        video: list[cv2.VideoWriter] = []

        def write(image: np.ndarray) -> None:
            if not video:
                code = cv2.VideoWriter_fourcc(*'mp4v')
                video.append(cv2.VideoWriter(str(unfinished), code, fps, image.shape[1::-1]))
                if not video[0].isOpened():
                    raise UsageError(
                        f'--out {out}: this OpenCV cannot write mp4; name a folder for PNG files'
                    )
            video[0].write(image)

        try:
            yield write
        finally:
            for writer in video:
                writer.release()
        unfinished.replace(out)


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
