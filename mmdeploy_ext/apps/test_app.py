"""`test.py`: mmdet's test loop over PyTorch or an ONNX engine, chosen by the config's `backend_config`."""

from __future__ import annotations

import dataclasses
import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import backend_config
from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights
from mmdeploy_ext.engines import BACKENDS, title_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.base import ExportOptions

NO_METRICS = (
    'the evaluator gave none, as it does where nothing was detected in any image; use a trained checkpoint '
    'and a data set of its classes, and a lower model.test_cfg.score_thr if there is one'
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; names and meaning are those of mmdet 2.28's test.py."""
    parser = cli.ArgumentParser(
        description='Evaluate a detector with PyTorch (X_pth.py) or an ONNX engine (X_onnx.py).'
    )
    shared.add_model_arguments(parser, device='auto')
    parser.add_argument('--eval', nargs='+', metavar='METRIC', help='metrics of the data set, e.g. bbox')
    parser.add_argument(
        '--eval-options', nargs='+', metavar='KEY=VALUE', help='arguments of dataset.evaluate()'
    )
    cli.writes(parser.add_argument('--out', metavar='FILE', help='write the results, .pkl or .pickle'))
    parser.add_argument(
        '--format-only', action='store_true', help="write the results in the data set's format, no evaluation"
    )
    parser.add_argument(
        '--fuse-conv-bn', action='store_true', help='fold batch normalisation into the convolutions (PyTorch)'
    )
    work = parser.add_argument('--work-dir', help='default: work_dirs/<config without _pth or _onnx>')
    show = parser.add_argument('--show-dir', help='draw the detections into this folder (one process only)')
    parser.add_argument(
        '--show-score-thr', type=float, default=0.3, help='drawn from this score on (default: 0.3)'
    )
    parts = parser.add_argument(
        '--tmpdir', help='where ranks leave their part of the results (default: in the work dir)'
    )
    for folder in (work, show, parts):
        cli.writes(folder, '')
    parser.add_argument('--gpu-collect', action='store_true', help='collect results through the GPUs')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch'
    )
    cli.add_debug_option(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class Run:
    """What is the same for all steps of one run.

    Attributes:
        deployment: model, config, checkpoint.
        backend_config: as `backend_config.read_settings` returns it.
        work_dir: shared by the `_pth` and the `_onnx` run.
        rank: of this process.
        world_size: number of processes.
        fuse: run PyTorch with batch normalisation folded into the convolutions.
    """

    deployment: Deployment
    backend_config: dict[str, Any]
    work_dir: Path
    rank: int
    world_size: int
    fuse: bool = False


def resolve_device(device: str) -> str:
    """Return the device of this process; 'auto' is its own GPU where there is one.

    Args:
        device: 'auto', or what the user chose.
    """
    import torch

    if device != 'auto':
        return device
    if not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()}'


def _check_arguments(args: argparse.Namespace) -> None:
    if not (args.out or args.eval or args.format_only or args.show_dir):
        raise UsageError('nothing to do: give at least one of --eval, --out, --format-only, --show-dir')
    if args.eval and args.format_only:
        raise UsageError('--eval and --format-only exclude each other')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {args.out}: expected a .pkl or .pickle file')
    if args.show_dir and args.launcher != 'none':
        raise UsageError('--show-dir works with one process (--launcher none)')


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Evaluate."""
    cli.wait_passively()
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.core import distributed
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.core.files import check_writable
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.families.base import DETECTOR, find_family

    _check_arguments(args)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    shared.parse_cfg_options(args.eval_options, '--eval-options')
    register()
    cfg = load_config(args.config, cfg_options)
    if args.out:
        check_writable(args.out)
    work_dir = Path(
        args.work_dir or cfg.get('work_dir') or f'work_dirs/{evaluation.work_dir_name(args.config)}'
    )
    if find_family(cfg, DETECTOR).samples != 'images':
        from mmdeploy_ext.apps.sequence_test import run_sequence

        return run_sequence(args, cfg, cfg_options, work_dir)
    settings = backend_config.read_settings(cfg)
    dataset = evaluation.build_dataset(cfg)
    backend_config.check_targets(settings, work_dir)
    check = backend_config.graph_check(settings, work_dir)
    rank, world_size = distributed.start(args.launcher, args.local_rank)
    args.device = resolve_device(args.device)
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, args.device, check)
    this = Run(deployment, settings, work_dir, rank, world_size, args.fuse_conv_bn)
    with after_weights():
        loader = evaluation.build_loader(cfg, dataset, distributed=args.launcher != 'none')
        results, status = _run_engine(this, args, loader)
        if rank == 0 and not status:
            status = finish(this, args, dataset, results)
    return status


def _run_engine(this: Run, args: argparse.Namespace, loader: Any) -> tuple[Any, int]:
    """Run the loop on the engine of the config; the PyTorch weights are gone before an ONNX engine starts."""
    from mmdeploy_ext.evaluate.detector import BackendDetector
    from mmdeploy_ext.evaluate.evaluation import run_loop

    backend, metadata, dump = make_backend(this)
    with backend:
        if this.backend_config['type'] != 'TorchBackend':
            metadata = backend.metadata
            if not _agrees_with_dump(this, backend):
                return None, 1
            this.deployment.model = None
        detector = BackendDetector(backend, this.deployment.family, metadata, dump)
        device = args.device if this.backend_config['type'] == 'TorchBackend' else 'cpu'
        distributed = args.launcher != 'none'
        parts = this.work_dir / f'.dist_test_{this.backend_config["type"]}'
        return run_loop(
            detector,
            loader,
            device=device,
            distributed=distributed,
            gpu_collect=args.gpu_collect,
            tmpdir=(args.tmpdir or str(parts)) if distributed else None,
            show_dir=args.show_dir,
            show_score_thr=args.show_score_thr,
        ), 0


def make_backend(this: Run) -> tuple[Backend, Metadata, Any]:
    """Return the engine of the config (not yet active), the metadata of its graph and the dump options.

    An ONNX file that is missing or was made from another config or checkpoint is exported first, by rank 0.
    """
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.engines import build_backend

    asked = backend_config.graph_options(this.backend_config)
    if this.backend_config['type'] == 'TorchBackend':
        asked = dataclasses.replace(asked, precision='fp32', fp16_io=False, keep_fp32=())  # of the file
    options = deploy.resolve(asked, this.deployment.model, this.deployment.rule)
    metadata = deploy.make_metadata(this.deployment, options)
    kind = this.backend_config['type']
    if kind == 'TorchBackend':
        stages = this.deployment.family.stages(this.deployment.model, options, fold=this.fuse)
        device = str(next(this.deployment.model.parameters()).device)
        return (
            build_backend(kind, stages, metadata.spec, device=device),
            metadata,
            _dump_options(this, options),
        )
    path = this.backend_config.get('onnx_file') or str(
        this.work_dir / f'{this.work_dir.name}_{options.form}.onnx'
    )
    if this.rank == 0:
        export_if_stale(this.deployment, options, metadata, path)
    engine_options = backend_config.engine_options(this.backend_config)
    if this.world_size > 1:
        import torch.distributed

        torch.distributed.barrier()
        if 'threads' in BACKENDS[kind].keys:
            engine_options.setdefault('threads', threads_per_process())
    return build_backend(kind, path, **engine_options), metadata, None


def threads_per_process() -> int:
    """Return this process's share of the cores of its machine."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1)


def export_if_stale(deployment: Deployment, options: ExportOptions, metadata: Metadata, path: str) -> bool:
    """Export `path` unless it is there and was made from this config, checkpoint and these options.

    Returns:
        Whether it was exported.

    Raises:
        ModelFileError: it is stale and quantised: an export would put a float32 file in its place.
    """
    from mmdeploy_ext.apps.proof import DEFAULT_IMAGE
    from mmdeploy_ext.contract.metadata import read_metadata
    from mmdeploy_ext.core.errors import ModelFileError
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.inputs.pictures import read_image
    from mmdeploy_ext.quantize.dense_target import refuse_stale

    reason = 'missing'
    if Path(path).is_file():
        try:
            found = read_metadata(path)
        except ModelFileError as error:
            raise ModelFileError(
                f'{error} (backend_config.onnx_file; delete it to have it exported)'
            ) from error
        reason = stale_reason(found, metadata)
        if not reason:
            print(f'{path}: up to date', flush=True)
            return False
        refuse_stale(path, reason)
    traced = deploy.prepare_fixed(deployment.rule, read_image(DEFAULT_IMAGE), options.height, options.width)
    _, seconds = deploy.export_to_file(deployment, options, [traced], path)
    print(f'{path}: was {reason}; exported in {seconds:.1f} s', flush=True)
    return True


def stale_reason(found: Metadata, wanted: Metadata) -> str:
    """Return why a file has to be exported again; '' when it need not."""
    from mmdeploy_ext.proof.provenance import differing_contract

    differing = [
        title
        for title, old, new in (
            ('config', found.config_sha256, wanted.config_sha256),
            ('checkpoint', found.checkpoint_sha256, wanted.checkpoint_sha256),
            ('export options', _decisive(found.options), _decisive(wanted.options)),
            ('versions', found.versions, wanted.versions),
            ('tolerances', differing_contract(found.spec, wanted.spec), ''),
        )
        if old != new
    ]
    return f'stale: another {" and ".join(differing)}' if differing else ''


def _decisive(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out the overrides: those that decide the graph are in the config's hash."""
    return {key: value for key, value in options.items() if key != 'cfg_options'}


def _dump_options(this: Run, options: ExportOptions) -> Any:
    from mmdeploy_ext.evaluate.detector import DumpOptions

    dump = this.backend_config['dump']
    if dump is None:
        return None
    folder, facts = dump_place(this, f'the tensors of the first {dump["samples"]} samples')
    facts['form'] = options.form
    return DumpOptions(folder, facts, dump['samples'], dump['tensors'], this.rank, this.world_size)


def dump_place(this: Run, what: str) -> tuple[Path, dict[str, Any]]:
    """Return where a dump goes and the facts of every manifest; rank 0 says what is written."""
    folder = Path(this.backend_config['dump']['dir'] or this.work_dir / 'dump')
    if this.rank == 0:
        print(f'dumping {what} to {folder}', flush=True)
    return folder, dict(
        config=Path(this.deployment.config).name,
        config_sha256=this.deployment.config_sha256,
        checkpoint_sha256=this.deployment.checkpoint_sha256,
    )


def _agrees_with_dump(this: Run, backend: Backend) -> bool:
    """Compare the engine with what the `_pth` run dumped, when there is such a dump."""
    if this.rank != 0 or not this.backend_config.get('check_dump', True):
        return True
    from mmdeploy_ext.proof.against_dump import check_dump

    folder = this.backend_config.get('dump_dir') or this.work_dir / 'dump'
    return check_dump(backend, this.deployment, Path(folder))


def finish(this: Run, args: argparse.Namespace, dataset: Any, results: Any) -> int:
    """Write results, evaluate, keep the metrics and print the difference of the engines."""
    import pickle

    from mmdeploy_ext.core.files import atomic_path
    from mmdeploy_ext.evaluate import evaluation

    if results is None:
        return 0
    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_bytes(pickle.dumps(results))
        print(f'results: {args.out}')
    eval_options = shared.parse_cfg_options(args.eval_options, '--eval-options')
    if args.format_only:
        eval_options.setdefault('jsonfile_prefix', str(this.work_dir / 'results'))
        dataset.format_results(results, **eval_options)
        print(f'formatted results: {eval_options["jsonfile_prefix"]}*')
    if args.eval:
        metrics = evaluation.evaluate(this.deployment.cfg, dataset, results, args.eval, eval_options)
        return 0 if keep_and_compare(this, metrics, len(dataset)) else 1
    return 0


def keep_and_compare(this: Run, metrics: dict[str, float], samples: int) -> bool:
    """Write `metrics_<engine>.json` and print this engine's metrics, beside PyTorch's when they are known.

    Returns:
        False when a metric differs from PyTorch's by more than the bar, or when neither engine has one.
    """
    from mmdeploy_ext.core.files import read_json, write_json
    from mmdeploy_ext.proof.levels.metrics import metric_bar, metric_rows, metric_table

    kind = this.backend_config['type']
    entry = dict(
        metrics=metrics,
        engine=kind,
        samples=samples,
        config=Path(this.deployment.config).name,
        config_sha256=this.deployment.config_sha256,
        checkpoint_sha256=this.deployment.checkpoint_sha256,
        processes=this.world_size,
        memory=this.backend_config.get('memory', 'keep'),
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    )
    name = BACKENDS[kind].suffix
    target = this.work_dir / f'metrics_{name}.json'
    write_json(target, entry)
    reference_path = this.work_dir / 'metrics_pth.json'
    if name == 'pth' or not reference_path.is_file():
        print(metrics)
        if not metrics:
            print(f'no metric: {NO_METRICS}')
        if name != 'pth':
            print(f'PyTorch metrics are not known: run the _pth config to have {reference_path}')
        return True
    reference = read_json(reference_path)
    same = (
        all(reference.get(key) == entry[key] for key in ('config_sha256', 'checkpoint_sha256', 'samples'))
        and reference.get('memory', 'keep') == entry['memory']
    )
    if not same:
        print(metrics)
        print(f'{reference_path} is of another config, checkpoint, number of samples or memory: not compared')
        return True
    bar = metric_bar(backend_config.precision(this.backend_config))
    rows = metric_rows(reference['metrics'], metrics, bar)
    if not rows:
        print(f'NOT PROVEN: nothing was compared, neither PyTorch nor this engine has a metric: {NO_METRICS}')
        return False
    cli.stdout().print(metric_table(rows, title_of(kind)))
    print(
        f'PyTorch: {reference["config"]}, {reference["processes"]} process(es), {reference["made"]} '
        f'({reference_path}); this run: {target}'
    )
    equal = all(row.passed for row in rows)
    if not equal:
        print('NOT PROVEN: the metrics differ; tools/deployment/verify.py says where the outputs do')
    return equal


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
