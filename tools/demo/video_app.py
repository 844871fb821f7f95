"""`streampetr_video.py` and `fusion_video.py`, two names of one program: a scene as a video of boxes."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drawing as demo
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, UsageError, after_weights
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.families.base import DETECTOR, find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.runtime import film
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Stepper


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Run a scene of data.test through a model of cameras, LiDAR or both, in PyTorch, ONNX '
        'Runtime or both, and draw its boxes in all cameras and from above.'
    )
    add = cli.adder(parser)
    add('config', 'config file')
    add('checkpoint', 'checkpoint file, for PyTorch', nargs='?')
    add('--onnx PATH', 'exported folder or file, for ONNX Runtime')
    demo.add_options(parser, None, 'default: both if checkpoint and --onnx are given, else the given one')
    add('--scene N', 'number of the scene, from 0 (default: %(default)s)', 0)
    add('--frames N', 'only the first N frames (default: all)', type=int)
    add(
        '--out PATH',
        'a video in .mp4, or a folder for one PNG file per frame',
        type=Path,
        required=True,
        writes='{}',
    )
    add('--fps F', 'frames per second of the video (default: %(default)s)', 4.0)
    add('--device DEVICE', 'where PyTorch runs (default: %(default)s)', 'cpu')
    add('--providers EP...', 'ONNX Runtime execution providers, in order')
    return parser


def engines_to_run(args: argparse.Namespace) -> list[str]:
    """Keys of `demo.ENGINES` to run, PyTorch first."""
    available = [name for name, model in (('torch', args.checkpoint), ('onnx', args.onnx)) if model]
    if not available:
        raise UsageError('got neither a checkpoint nor --onnx; expected at least one of them')
    engines = {'both': list(demo.ENGINES), None: available}.get(args.engine, [args.engine])
    for name in engines:
        if name not in available:
            model = 'a checkpoint (second argument)' if name == 'torch' else '--onnx PATH'
            raise UsageError(f'--engine {args.engine}: {demo.ENGINES[name]} needs {model}')
    return engines


def check_options(args: argparse.Namespace) -> None:
    demo.check_options(args)
    cli.check_minimums(args, scene=0, frames=1)
    if not 0 < args.fps < math.inf:
        raise UsageError(f'--fps {args.fps}: expected more than 0, and finite')
    if not film.is_video(args.out) and (args.out.is_file() or args.out.suffix.lower() in film.OTHER_FILES):
        raise UsageError(f'--out {args.out}: is a file, expected a name in .mp4 or a folder')
    check_writable(args.out if film.is_video(args.out) else args.out / 'x.png')


def run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    engines = engines_to_run(args)
    check_options(args)

    compat.apply()
    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.families.evaluate.loop import DatasetFrames
    from mmdeploy_ext.families.sequence_data import scene_tokens

    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    family = find_3d_family(args.config, cfg)
    dataset = evaluation.build_dataset(cfg)
    indices = scene_indices(scene_tokens(dataset, family.memory), args.scene, args.frames)
    steppers, classes = load_steppers(args, engines, family)
    with after_weights():
        frames = DatasetFrames(family, dataset, indices, min(cfg.data.get('workers_per_gpu', 2), 2))
        rule = family.preprocess_rule(cfg)
        summary = draw_scene(args, rule, frames, len(indices), steppers, classes)
    print(f'{args.out}: {len(indices)} frames of scene {args.scene}; {summary}')
    return 0


def scene_indices(tokens: Sequence[str], scene: int, frames: int | None) -> list[int]:
    """Indices of the first `frames` samples (None: all) of a scene.

    `tokens` has each sample's scene; scenes are numbered from 0 in their order.
    """
    scenes = list(dict.fromkeys(tokens))
    if scene >= len(scenes):
        raise UsageError(
            f'--scene {scene}: the data set has {len(scenes)} scenes, expected 0..{len(scenes) - 1}'
        )
    return [index for index, token in enumerate(tokens) if token == scenes[scene]][:frames]


def find_3d_family(config: str, cfg: Any) -> SequenceFamily:
    family = find_family(cfg, DETECTOR)
    if family.samples == 'images':
        raise ConfigError(
            f'{config}: family {family.name!r} uses single images; expected a model of all cameras, of '
            'LiDAR or of both (for images, use `mm2onnx run`)'
        )
    return family


def load_steppers(
    args: argparse.Namespace, engines: Sequence[str], family: SequenceFamily
) -> tuple[dict[str, Stepper], tuple[str, ...]]:
    """Key of `demo.ENGINES` -> model, and the classes."""
    steppers: dict[str, Stepper] = {}
    classes: tuple[str, ...] = ()
    if 'torch' in engines:
        from mmdeploy_ext.families.detector import load

        overrides = shared.parse_cfg_options(args.cfg_options)
        detector = load(args.config, args.checkpoint, overrides, args.device)
        steppers['torch'], classes = family.reference(detector.model), detector.classes
    if 'onnx' in engines:
        from mmdeploy_ext.families.detector_files import read_files

        files = read_files(args.onnx)
        unnamed = tuple(f'class {label}' for label in range(len(classes)))  # of a checkpoint without names
        if 'torch' in engines and tuple(files.metadata.classes) not in (tuple(classes), unnamed):
            raise ConfigError(
                f'{args.onnx}: has the classes {", ".join(files.metadata.classes)}, but {args.checkpoint} '
                f'has {", ".join(classes)}; export the files from this checkpoint'
            )
        options: dict[str, Any] = dict(engine='OnnxRuntimeBackend', threads=args.threads)
        if args.providers:
            options['providers'] = args.providers
        contract = contract_of(family, files.metadata.options)
        steppers['onnx'], classes = contract.runner(files.paths, options), files.metadata.classes
    return steppers, classes


def draw_scene(
    args: argparse.Namespace,
    rule: Any,
    frames: Iterable[Frame],
    count: int,
    steppers: dict[str, Stepper],
    classes: Sequence[str],
) -> str:
    """Run all frames and write the pictures; return the median time of a step on each engine as text."""
    from mmdeploy_ext.runtime.tasks import bbox3d

    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    with film.open_writer(args.out, args.fps) as write:
        for number, frame in enumerate(cli.tracked(frames, count, 'frames')):
            detections = {}
            for name, stepper in steppers.items():
                start = time.perf_counter()
                detections[name] = stepper.step(frame).detections
                seconds[name].append(time.perf_counter() - start)
            title = f'scene {args.scene}, frame {number + 1} of {count}'
            reference, candidate = detections.get('torch'), detections.get('onnx')
            pair = bbox3d.pair_of(frame, rule, title, reference, candidate, demo.ENGINES['onnx'])
            write(demo.draw_boxes(pair, detections, classes, args.score_thr))  # all frames have one size
    medians = {demo.ENGINES[name]: statistics.median(values) * 1e3 for name, values in seconds.items()}
    return f'{", ".join(f"{name} {ms:.0f} ms" for name, ms in medians.items())} per frame (median)'


main = cli.program(run, build_parser)
