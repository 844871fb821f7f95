"""`lidar_demo.py`: a LiDAR sweep through PyTorch and ONNX Runtime, and a picture of the boxes from above."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drawing as demo
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ConfigError, UsageError, after_weights
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli.run_images import PICTURE_SUFFIXES
from mmdeploy_ext.runtime.detect import opener
from mmdeploy_ext.runtime.exported import export_files as files_of
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D

CONFIG = 'projects/configs/BEVFusion/centerpoint_toy.py'
CHECKPOINT = 'demo/checkpoints/centerpoint_toy.pth'
"""Default checkpoint, of the default config `CONFIG`."""
EXPORT_FOLDER = Path('work_dirs/lidar_demo/graphs')
RUNS = 3
"""The fastest run is reported: the first warms up."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Run a LiDAR detector on one sweep in PyTorch, ONNX Runtime or both, and draw its '
        'boxes from above.'
    )
    add = cli.adder(parser)
    add('sweep', "raw float32 points: nuScenes' .pcd.bin, or .bin with the model's values per point")
    default = 'default: %(default)s, which exists in a clone of the repository; required elsewhere'
    add('--config CONFIG', default, CONFIG)
    add('--checkpoint CHECKPOINT', default, CHECKPOINT)
    add(
        '--onnx FOLDER',
        f'what {tool("export")} wrote (default: exported to {EXPORT_FOLDER} from config and checkpoint)',
    )
    demo.add_options(parser, 'both', 'both')
    add('--out FILE', 'default: %(default)s', Path('work_dirs/lidar_demo/sweep.png'), writes='{}')
    return parser


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.runtime.frames import Sweep
    from mmdeploy_ext.runtime.points import read_points

    cli.wait_passively()
    demo.check_options(args)
    if args.onnx and args.engine == 'torch':
        raise UsageError(f'--onnx {args.onnx}: requires --engine onnx or both')
    if args.out.suffix.lower() not in ('', *PICTURE_SUFFIXES):
        raise UsageError(f'--out {args.out}: expected a .png or .jpg file')
    check_writable(args.out)
    if not Path(args.sweep).exists():
        raise UsageError(f'{args.sweep}: no such file; expected a sweep of raw float32 points')
    with contextlib.ExitStack() as stack:
        detections: dict[str, Detections3D] = {}
        detector = None
        if args.engine != 'onnx' or not args.onnx:
            detector = load(args)
        with after_weights():
            runtime = open_runtime(args, detector, stack) if args.engine != 'torch' else None
            model = detector if runtime is None else runtime
            points = read_points(args.sweep, int(model.rule.in_channels))
            if args.engine != 'onnx':
                stepper, sweep = detector.family.reference(detector.model), Sweep(points, args.sweep)
                detections['torch'] = timed('torch', lambda: stepper.step(sweep).detections)
            if runtime is not None:
                detections['onnx'] = timed('onnx', lambda: runtime.detect(points))
            return show(args, points, detections, model.classes)


def load(args: argparse.Namespace) -> Any:
    compat.apply()
    from mmdeploy_ext.families.detector import build, load_weights, read_config

    overrides = shared.parse_cfg_options(args.cfg_options)
    detector = read_config(args.config, args.checkpoint, overrides)
    family = detector.family
    if family.samples != 'sweeps':
        raise ConfigError(f'{args.config}: family {family.name!r} needs more than a LiDAR sweep')
    build(detector)
    load_weights(detector)
    return detector


def open_runtime(args: argparse.Namespace, detector: Any, stack: contextlib.ExitStack) -> Any:
    """Runtime of --onnx on ONNX Runtime, or of a new export of `detector`."""
    from mmdeploy_ext.runtime.lidar import GRAPHS
    from mmdeploy_ext.spec.metadata import read_metadata

    folder = args.onnx
    if not folder:
        from mmdeploy_ext.families.detector import resolve_opset
        from mmdeploy_ext.families.detector_files import export_files

        folder = str(EXPORT_FOLDER)
        options = resolve_opset(detector.family.choose(opset=0), detector.model)
        _, seconds = export_files(detector, options, folder)
        print(f'{folder}: exported in {seconds:.1f} s')
    opens = opener(read_metadata(files_of(folder, GRAPHS)[-1]))
    return stack.enter_context(opens(folder, threads=args.threads))


def timed(engine: str, detect: Callable[[], Detections3D]) -> Detections3D:
    """Detect `RUNS` times, print the fastest time, and return the boxes of the last."""
    milliseconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        detections = detect()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    fastest = f'{min(milliseconds):.0f} ms from points to boxes'
    print(f'{demo.ENGINES[engine]}: {len(detections)} boxes, {fastest}')
    return detections


def show(
    args: argparse.Namespace, points: np.ndarray, detections: dict[str, Detections3D], classes: Sequence[str]
) -> int:
    """Write the picture; return 1 if the boxes of two engines differ.

    `points` (P, D) float32 are x, y, z in metres, LiDAR frame, then other values.
    """
    from mmdeploy_ext.runtime.draw import write_picture
    from mmdeploy_ext.runtime.tasks import bbox3d
    from mmdeploy_ext.spec.results import Pair

    title = f'{Path(args.sweep).name}, {len(points)} points'
    pair = Pair(title, points, detections.get('torch'), detections.get('onnx'))
    equal = True
    if len(detections) == 2:
        row = bbox3d.match_detections(title, detections['torch'], detections['onnx'])
        equal = row.passed
        verdict = 'equal' if equal else f'DIFFERENT: {row.reason}'
        print(
            f'boxes of at least {bbox3d.SCORE_THR}: {row.matched} of {row.reference} matched, worst '
            f'distance {row.worst_distance:.2g} m, worst score difference {row.worst_score:.2g}: {verdict}'
        )
    write_picture(args.out, demo.draw_boxes(pair, detections, classes, args.score_thr))
    print(f'picture: {args.out}')
    return 0 if equal else 1


main = cli.program(run, build_parser)
