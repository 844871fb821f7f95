"""`streampetr_video.py`, `fusion_video.py`: a scene of a data set through a model, as a video of boxes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import demo
from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError, UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    import numpy as np

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Stepper


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Run a scene of data.test through a model of cameras, LiDAR or both and draw its boxes '
        'into all cameras and from above, by PyTorch, by ONNX Runtime, or by both side by side.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; PyTorch needs it')
    parser.add_argument(
        '--onnx', metavar='PATH', help='folder or file that pytorch2onnx.py wrote; ONNX Runtime needs it'
    )
    demo.add_options(parser, None, 'both where a checkpoint and --onnx are given, else the one that is')
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
        '--fps', type=float, default=4.0, metavar='F', help='of the video (default: %(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='where PyTorch runs (default: %(default)s)')
    parser.add_argument(
        '--providers', nargs='+', metavar='EP', help='ONNX Runtime execution providers, in order'
    )
    cli.add_debug_option(parser)
    return parser


def chosen_engines(args: argparse.Namespace) -> list[str]:
    """Return the keys of `demo.ENGINES` to run, PyTorch first.

    Raises:
        UsageError: an engine without its model.
    """
    given = [name for name, model in (('torch', args.checkpoint), ('onnx', args.onnx)) if model]
    if not given:
        raise UsageError('got neither a checkpoint nor --onnx; expected at least one of them')
    wanted = {'both': list(demo.ENGINES), None: given}.get(args.engine, [args.engine])
    for name in wanted:
        if name not in given:
            needed = 'a checkpoint (second argument)' if name == 'torch' else '--onnx PATH'
            raise UsageError(f'--engine {args.engine}: {demo.ENGINES[name]} needs {needed}')
    return wanted


def check_options(args: argparse.Namespace) -> None:
    """Refuse invalid numbers, and an output that cannot be written, before anything is loaded."""
    from mmdeploy_ext.core.files import check_writable

    demo.check_options(args)
    cli.check_least(args, scene=0, frames=1)
    if not args.fps > 0:
        raise UsageError(f'--fps {args.fps}: expected more than 0')
    if not demo.is_video(args.out) and (args.out.is_file() or args.out.suffix.lower() in demo.OTHER_FILES):
        raise UsageError(f'--out {args.out}: is a file, expected a name in .mp4 or a folder')
    check_writable(args.out if demo.is_video(args.out) else args.out / 'x.png')


@dataclasses.dataclass
class Models:
    """The models to run, and what drawing their boxes takes.

    Attributes:
        cfg: the config.
        family: of the model.
        steppers: key of `demo.ENGINES` -> model with its memory.
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
    family = drawn_family(args.config, cfg)
    dataset = evaluation.build_dataset(cfg)
    indices = scene_indices(scene_tokens(dataset, family.memory), args.scene, args.frames)
    models = load(args, engines, cfg, family)
    with after_weights():
        summary = draw_scene(models, dataset, indices, args)
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


def drawn_family(config: str, cfg: Any) -> SequenceFamily:
    """Return the family of a config.

    Raises:
        ConfigError: its models take single pictures.
    """
    from mmdeploy_ext.families.base import DETECTOR, find_family

    family = find_family(cfg, DETECTOR)
    if family.samples == 'images':
        raise ConfigError(
            f'{config}: family {family.name!r} takes single pictures; expected a model of all cameras, of '
            f'LiDAR or of both (pictures are drawn by `mm2onnx run`)'
        )
    return family


def load(args: argparse.Namespace, engines: Sequence[str], cfg: Any, family: SequenceFamily) -> Models:
    """Load the models; PyTorch's only where it runs."""
    steppers: dict[str, Stepper] = {}
    classes: tuple[str, ...] = ()
    if 'torch' in engines:
        from mmdeploy_ext.deploy import deployment as deploy

        overrides = shared.parse_cfg_options(args.cfg_options)
        deployment = deploy.load(args.config, args.checkpoint, overrides, args.device)
        steppers['torch'], classes = family.reference(deployment.model), deployment.classes
    if 'onnx' in engines:
        from mmdeploy_ext.deploy.files import read_files

        files = read_files(args.onnx)
        engine: dict[str, Any] = dict(engine='OnnxRuntimeBackend', threads=args.threads)
        if args.providers:
            engine['providers'] = args.providers
        steppers['onnx'], classes = family.runner(files.paths, engine), files.metadata.classes
    return Models(cfg, family, steppers, classes)


def draw_scene(models: Models, dataset: Any, indices: Sequence[int], args: argparse.Namespace) -> str:
    """Run the frames and write the pictures; return what to say about it."""
    from mmdeploy_ext.evaluate.loop import DatasetFrames

    rule = models.family.preprocess_rule(models.cfg)
    seconds: dict[str, list[float]] = {name: [] for name in models.steppers}
    workers = min(models.cfg.data.get('workers_per_gpu', 2), 2)
    with demo.open_writer(args.out, args.fps) as write:
        frames = DatasetFrames(models.family, dataset, indices, workers)
        for number, frame in enumerate(cli.tracked(frames, len(indices), 'frames')):
            found = {}
            for name, stepper in models.steppers.items():
                start = time.perf_counter()
                found[name] = stepper.step(frame).detections
                seconds[name].append(time.perf_counter() - start)
            title = f'scene {args.scene}, frame {number + 1} of {len(indices)}'
            write(picture(frame, rule, found, models.classes, title, args.score_thr))
    medians = {demo.ENGINES[name]: statistics.median(values) * 1e3 for name, values in seconds.items()}
    return f'{", ".join(f"{name} {ms:.0f} ms" for name, ms in medians.items())} per frame (median)'


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
        found: key of `demo.ENGINES` -> detections; of two, what differs is marked.
        classes: names by label.
        title: of the frame.
        score_thr: boxes below are left out.
    """
    from mmdeploy_ext.proof.tasks import bbox3d
    from mmdeploy_ext.runtime.bird_eye import Layer

    pair = bbox3d.pair_of(frame, rule, title, *map(found.get, demo.ENGINES), demo.ENGINES['onnx'])
    if len(found) == 2:
        return bbox3d.draw_pair(pair, classes, score_thr)
    ((name, detections),) = found.items()
    return bbox3d.draw_layers(pair, [Layer(demo.ENGINES[name], detections.above(score_thr))], classes)


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
