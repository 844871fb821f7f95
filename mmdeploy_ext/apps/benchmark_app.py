"""`benchmark.py`: PyTorch and ONNX engines against each other, interleaved in one run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps.benchmark_sparse import SPARSE_OPTIONS, add_sparse_options, is_sparse_model, run_sparse
from mmdeploy_ext.benchmark import engines as known_engines
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.benchmark.contenders import Plan
    from mmdeploy_ext.benchmark.measure import Contender, Run

MAX_IMAGES = 64


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; where mmdet 2.28's benchmark.py has an option, name and meaning are the same."""
    parser = cli.ArgumentParser(
        description='Measure a model in PyTorch and as ONNX graphs: interleaved rounds in one '
        'process, from prepared images to detections.'
    )
    shared.add_model_arguments(parser)
    parser.add_argument(
        '--onnx',
        nargs='+',
        default=[],
        metavar='m.onnx',
        help='exported files (default: `full` and `raw` are exported to a temporary folder)',
    )
    _add_round_options(parser)
    _add_input_options(parser)
    _add_output_options(parser)
    add_sparse_options(parser)
    cli.add_debug_option(parser)
    return parser


def _add_round_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--engines',
        default='torch,onnxruntime',
        metavar='A,B',
        help=f'of {",".join(known_engines.ENGINES)} (default: torch,onnxruntime)',
    )
    parser.add_argument(
        '--max-iter', type=int, default=20, metavar='N', help='rounds that count (default: 20)'
    )
    parser.add_argument(
        '--repeat-num', type=int, default=1, metavar='N', help='repeat all rounds (default: 1)'
    )
    parser.add_argument(
        '--warmup', type=int, default=3, metavar='N', help='rounds before, not counted (default: 3)'
    )
    parser.add_argument(
        '--spare-rounds',
        type=int,
        default=0,
        metavar='N',
        help='run up to N rounds again that other processes disturbed (default: 0)',
    )
    parser.add_argument(
        '--max-seconds',
        type=float,
        default=0,
        metavar='S',
        help='begin no round after S seconds, once three count (default: run all rounds)',
    )
    parser.add_argument(
        '--skip-refused',
        action='store_true',
        help='leave out files that an engine cannot load or run, and say why (default: that is an error)',
    )
    parser.add_argument(
        '--log-interval', type=int, default=10, metavar='N', help='print medians every N rounds (default: 10)'
    )
    parser.add_argument(
        '--fuse-conv-bn', action='store_true', help='also measure PyTorch with convolution and BN fused'
    )


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width, or one number for both (default: of the files, else from the test pipeline)',
    )
    parser.add_argument(
        '--samples-per-gpu',
        '--batch-size',
        type=int,
        default=0,
        metavar='N',
        help='images per batch (default: of the files, else 1)',
    )
    parser.add_argument(
        '--threads', type=int, default=0, metavar='N', help='of every engine (default: the cores)'
    )
    parser.add_argument(
        '--images', nargs='+', metavar='PATH', help='images or folders (default: demo/toy.jpg)'
    )
    parser.add_argument(
        '--prepared',
        metavar='FILE.npz',
        help='a network input instead of images: arrays input (3, H, W), img_shape, ori_shape',
    )
    parser.add_argument(
        '--profile',
        action='store_true',
        help="operators by ONNX Runtime's profiler, in sessions of their own",
    )
    parser.add_argument(
        '--no-memory', action='store_true', help='do not measure memory (a process per contender)'
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', metavar='FILE', help='write all figures as JSON')
    cli.writes(parser.add_argument('--chart', metavar='FILE.png', help='draw a bar chart'))
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='processes of one machine share the rounds, in step; rank 0 reports',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch'
    )


def _check(args: argparse.Namespace) -> list[str]:
    """Refuse what can be refused before anything is loaded; returns the engines."""
    from mmdeploy_ext.core.files import check_writable

    for name, least in (
        ('max_iter', 1),
        ('repeat_num', 1),
        ('warmup', 0),
        ('spare_rounds', 0),
        ('log_interval', 1),
        ('samples_per_gpu', 0),
        ('threads', 0),
        ('max_seconds', 0),
    ):
        if getattr(args, name) < least:
            raise UsageError(f'--{name.replace("_", "-")} {getattr(args, name)}: expected at least {least}')
    engines = [name.strip() for name in args.engines.split(',') if name.strip()]
    known_engines.check_names(engines, said=f'--engines {args.engines}')
    if args.shape is not None and (len(args.shape) > 2 or min(args.shape) <= 0):
        raise UsageError(f'--shape {" ".join(map(str, args.shape))}: expected one or two positive numbers')
    if args.prepared and args.images:
        raise UsageError('--prepared and --images: the benchmark measures on one of them')
    _check_engines_used(args, engines)
    for name in ('max_seconds', 'spare_rounds'):
        if getattr(args, name) and args.launcher != 'none':
            raise UsageError(
                f'--{name.replace("_", "-")} and --launcher: processes that measure in step run all rounds '
                f'once'
            )
    if args.chart and not args.chart.endswith('.png'):
        raise UsageError(f'--chart {args.chart}: expected a .png file')
    for target in filter(None, (args.json, args.chart)):
        check_writable(target)
    return engines


def _check_engines_used(args: argparse.Namespace, engines: Sequence[str]) -> None:
    """Refuse options of engines that do not take part."""
    said = f'got --engines {args.engines}'
    if args.onnx and set(engines) == {known_engines.BASELINE}:
        raise UsageError(f'--onnx {" ".join(args.onnx)}: goes with an engine that runs files, {said}')
    if args.fuse_conv_bn and known_engines.BASELINE not in engines:
        raise UsageError(f'--fuse-conv-bn: goes with --engines {known_engines.BASELINE}, {said}')
    if args.profile and 'onnxruntime' not in engines:
        raise UsageError(f'--profile: goes with --engines onnxruntime, {said}')


def _measure(plan: Plan, contenders: Sequence[Contender]) -> dict[str, list[Run]]:
    """Run this rank's share of the rounds and return the runs of all ranks, one after the other."""
    from rich.progress import Progress

    from mmdeploy_ext.benchmark import measure

    args, ranks = plan.args, plan.ranks
    rounds = args.repeat_num * -(-args.max_iter // ranks.size)
    with Progress(console=cli.stderr(), transient=True, disable=ranks.rank != 0) as bar:
        task = bar.add_task('measuring', total=rounds)

        def on_round(index: int, runs: Mapping[str, Sequence[Run]]) -> None:
            bar.advance(task)
            if ranks.rank == 0 and (index + 1) % args.log_interval == 0:
                line = ', '.join(
                    f'{name} {statistics.median(run.total_s for run in mine) * 1e3:.1f}'
                    for name, mine in runs.items()
                )
                line = f'Done round [{index + 1}/{rounds}], median ms per batch: {line}'
                bar.console.print(line, highlight=False, soft_wrap=True)

        mine = measure.interleave(
            contenders,
            plan.batches(ranks.rank),
            rounds,
            args.warmup,
            ranks.barrier,
            on_round,
            args.spare_rounds if ranks.size == 1 else 0,
            args.max_seconds,
        )
    gathered = ranks.gather(mine)
    return {name: [run for part in gathered for run in part[name]] for name in mine}


def _publish(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from mmdeploy_ext.benchmark import report
    from mmdeploy_ext.core.files import write_json

    if args.json:
        write_json(args.json, result)
    if args.chart:
        report.write_chart(result, args.chart)
    report.print_result(result, cli.stdout())
    if args.chart:
        print(f'chart: {args.chart}')


def _run_plan(plan: Plan) -> dict[str, Any]:
    """Measure memory, then times, then profiles; returns the content of the JSON file."""
    from mmdeploy_ext.benchmark import contenders, measure, memory, ort_profile
    from mmdeploy_ext.benchmark.result import make_result

    first, memories = plan.ranks.rank == 0, {}
    with contenders.open_contenders(plan) as opened:
        if first and not plan.args.no_memory and memory.is_supported():
            memories = contenders.measure_memory(plan, opened)
        runs = _measure(plan, opened)
    result = make_result(plan, opened, runs, memories)
    if first:
        result['preprocess_ms'] = measure.preprocess_ms(plan.prepare)
    if first and plan.args.profile and 'onnxruntime' in plan.engines:
        for label, path in plan.files.items():
            result['profiles'][f'onnxruntime {label}'] = ort_profile.profile_graph(
                path, plan.deployment.family, plan.prepare(), plan.threads
            )
    return result


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Measure and report."""
    engines = _check(args)
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.apps import proof
    from mmdeploy_ext.apps.benchmark_stream import run_streaming
    from mmdeploy_ext.apps.options import refuse_given
    from mmdeploy_ext.benchmark import contenders
    from mmdeploy_ext.benchmark.ranks import Ranks
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families.base import DETECTOR, find_family

    register()
    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    if is_sparse_model(cfg):
        return run_sparse(args, build_parser(), engines, register)
    refuse_given(args, build_parser(), SPARSE_OPTIONS, 'goes with sparse LiDAR backbones only')
    if find_family(cfg, DETECTOR).samples != 'images':
        return run_streaming(args, build_parser(), engines, register, _publish)
    contenders.read_files(args)
    images = [] if args.prepared else proof.read_images(args.images or [proof.DEFAULT_IMAGE], MAX_IMAGES)
    ranks = Ranks(args)
    with contenders.make_plan(args, ranks, engines, [picture for _, picture in images], register) as plan:
        with after_weights():
            result = _run_plan(plan)
            if ranks.rank == 0:
                _publish(args, result)
        ranks.barrier()
    return 0


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
