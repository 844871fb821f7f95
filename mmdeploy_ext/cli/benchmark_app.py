"""`benchmark.py`: PyTorch and ONNX engines against each other, interleaved in one run."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli, distributed
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError, after_weights
from mmdeploy_ext.base.files import check_writable, write_json
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import parts_app
from mmdeploy_ext.engines.registry import ENGINES, check_names
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.upstream import compat

DESCRIPTIONS = {
    shared.DETECTOR: 'Measure a model in PyTorch and as ONNX graphs: interleaved rounds in one '
    'process, from prepared images to detections.',
    shared.PARTS: 'Measure the test path of a detector in PyTorch, and with exported parts instead of its '
    'own modules, in turns.',
}


def build_parser(subject: str = shared.DETECTOR) -> cli.ArgumentParser:
    parser = shared.parser_of(subject, DESCRIPTIONS, build_parser)
    cli.add_fields(parser, ModelRequest, shared.MODEL)
    add = cli.adder(parser)
    add(
        '--parts FOLDER',
        'measure PyTorch with the exported parts of FOLDER instead of its own modules; options: `--parts'
        ' --help`',
    )
    add('--max-iter N', 'measured rounds (default: 20)', 20)
    add('--warmup N', 'warm-up rounds (default: 3)', 3)
    add('--json FILE', 'write all figures as JSON')
    if subject == shared.PARTS:
        parts_app.add_samples(parser)
        return parser
    add(
        '--onnx m.onnx...',
        'exported files (default: `full` and `raw` are exported to a temporary folder)',
        [],
    )
    add(
        '--engines A,B',
        f'engines to measure: {",".join(ENGINES)} (default: torch,onnxruntime)',
        'torch,onnxruntime',
    )
    add('--repeat-num N', 'repeat all rounds (default: 1)', 1)
    add(
        '--max-seconds S',
        'stop after S seconds, but not before three rounds; 0 runs all rounds (default: 0, sparse '
        'backbones 45)',
        type=float,
    )
    add(
        '--skip-refused',
        'report files that an engine cannot load or run, and continue (default: stop with an error)',
    )
    add('--log-interval N', 'print medians every N rounds (default: 10)', 10)
    add('--fuse-conv-bn', 'also measure PyTorch with convolution and BN fused')
    add(
        '--shape N...',
        'height and width, or one number for both (default: as in the files, else from the test pipeline)',
        type=int,
    )
    add('--samples-per-gpu --batch-size N', 'images per batch (default: as in the files, else 1)', 0)
    add('--threads N', 'threads of every engine (default: number of cores)', 0)
    add('--images PATH...', 'images or folders (default: demo/toy.jpg)')
    add('--no-memory', 'do not measure memory, which starts a process per contender')
    add('--chart FILE.png', 'draw a bar chart', writes='{}')
    add(
        '--launcher',
        'processes on one machine run the rounds together; rank 0 reports',
        'none',
        choices=('none', *distributed.STARTERS),
    )
    add('--local_rank --local-rank LOCAL_RANK', 'set by torch.distributed.launch', 0)
    points = parser.add_argument_group('LiDAR models and their sparse backbones')
    add = cli.adder(points)
    add(
        '--sweep FILE...',
        'real sweeps: points (.bin), also for models with cameras; for backbones also voxels (.npz: '
        'features and coordinates, coors_bxyz or coors_bzyx)',
        [],
    )
    add(
        '--voxels N...',
        'measure only the sparse backbone, on synthetic scenes with these numbers of voxels (default if '
        'only the backbone is exported: 5000 20000 60000 120000)',
        type=int,
    )
    return parser


def _check(args: argparse.Namespace) -> list[str]:
    cli.check_minimums(args, max_iter=1, repeat_num=1, warmup=0, log_interval=1)
    cli.check_minimums(args, samples_per_gpu=0, threads=0, max_seconds=0)
    engines = [name.strip() for name in args.engines.split(',') if name.strip()]
    check_names(engines, option=f'--engines {args.engines}')
    if args.shape is not None and (len(args.shape) > 2 or min(args.shape) <= 0):
        raise UsageError(f'--shape {" ".join(map(str, args.shape))}: expected one or two positive numbers')
    if args.max_seconds and args.launcher != 'none':
        raise UsageError(
            '--max-seconds and --launcher: processes that share the rounds run all of them; omit one option'
        )
    for path in args.sweep:
        if not Path(path).is_file():
            raise UsageError(f'--sweep {path}: no such file')
    if args.chart and not args.chart.endswith('.png'):
        raise UsageError(f'--chart {args.chart}: expected a .png file')
    for path in args.onnx:
        parts_app.refuse_folder(path, f'measure it with --parts {path}')
    for target in filter(None, (args.json, args.chart)):
        check_writable(target)
    return engines


def run(args: argparse.Namespace) -> int:
    if args.subject == shared.PARTS:
        return parts_app.run_benchmark(args)
    engines = _check(args)

    compat.apply()
    import cv2
    import torch

    args.cfg_options = shared.parse_cfg_options(args.cfg_options)
    family = find_family(load_config(args.config, args.cfg_options))
    measured = kind_of(family).benchmark(family, args.voxels, args.onnx)
    shared.refuse_options(args, build_parser(), measured.foreign, f'{measured.models} do not have it')
    with distributed.join(args.launcher, args.local_rank) as ranks:
        benchmark = measured(args, engines, ranks)
        torch.set_num_threads(benchmark.threads[0])
        cv2.setNumThreads(benchmark.threads[0])
        benchmark.load()
        with after_weights():
            result = benchmark.run()
            if ranks.rank == 0:
                from mmdeploy_ext.bench.benchmark import report

                if args.json:
                    write_json(args.json, result)
                if args.chart:
                    report.write_chart(result, args.chart)
                report.print_result(result, cli.stdout())
                if args.chart:
                    print(f'chart: {args.chart}')
    return 0


chosen_by = functools.partial(shared.subject_by_option, subjects=[shared.PARTS])
main = shared.program(run, build_parser, chosen_by)
