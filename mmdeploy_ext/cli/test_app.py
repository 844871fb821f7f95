"""`test.py`: mmdet's test loop over PyTorch or an ONNX engine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli, distributed
from mmdeploy_ext.base.config import check_config_file, test_datasets
from mmdeploy_ext.base.errors import DataError, ModelFileError, UsageError, after_weights
from mmdeploy_ext.base.files import atomic_path, check_writable
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.bench.kinds.tested import TestedModel, check_dataset
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import parts_app
from mmdeploy_ext.engines import BACKENDS, title_of
from mmdeploy_ext.families.evaluate import backend_config
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from mmdeploy_ext.base.distributed import Ranks
    from mmdeploy_ext.base.dump import DumpWriter
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.evaluate.loop import Network


DESCRIPTIONS = {
    shared.DETECTOR: 'Evaluate a detector with PyTorch, or its exported file with an ONNX engine.',
    shared.PARTS: 'Evaluate a detector on its data set with exported parts instead of its own modules.',
}


def build_parser(subject: str = shared.DETECTOR) -> cli.ArgumentParser:
    parser, is_parts = shared.parser_of(subject, DESCRIPTIONS, build_parser), subject == shared.PARTS
    cli.add_fields(parser, ModelRequest, 'config checkpoint cfg_options')
    cli.add_fields(parser, ModelRequest, 'device', default='cpu' if is_parts else 'auto')
    add = cli.adder(parser)
    add('--parts FOLDER', 'run PyTorch with the exported parts of FOLDER instead of its own modules')
    add('--eval METRIC...', 'metrics of the data set, e.g. bbox', required=is_parts)
    if is_parts:
        add('--json FILE', 'write the metrics of both engines as JSON')
        return parser
    engine = parser.add_mutually_exclusive_group()
    cli.add(engine, '--torch', "run PyTorch, ignoring the config's backend_config")
    cli.add(
        engine,
        '--onnx FILE',
        'run the exported file or folder FILE; without FILE, the export in WORK_DIR, which is made if '
        'missing',
        nargs='?',
        const='',
    )
    add('--eval-options KEY=VALUE...', 'arguments of dataset.evaluate()')
    add('--out FILE', 'write the results, .pkl or .pickle', writes='{}')
    add('--format-only', "write the results in the data set's format and skip the evaluation")
    add('--fuse-conv-bn', 'fold batch normalisation into the convolutions (PyTorch)')
    work = add(
        '--work-dir WORK_DIR',
        'folder of exports and metrics (default: work_dirs/<config without _pth or _onnx>)',
    )
    show = add('--show-dir SHOW_DIR', 'draw the detections to this folder')
    add('--show-score-thr SHOW_SCORE_THR', 'draw boxes of at least this score (default: 0.3)', 0.3)
    parts = add(
        '--tmpdir TMPDIR', 'shared folder for the results of all processes (default: the processes send them)'
    )
    for folder in (work, show, parts):
        cli.writes(folder, '')
    add('--gpu-collect', 'collect results through the GPUs')
    add('--launcher', '', 'none', choices=('none', *distributed.STARTERS))
    add('--local_rank --local-rank LOCAL_RANK', 'set by torch.distributed.launch', 0)
    return parser


def resolve_device(device: str) -> str:
    """Device of this process as PyTorch names it, such as 'cpu' or 'cuda:1'."""
    import torch

    if device != 'auto':
        return device
    if not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()}'


def run(args: argparse.Namespace) -> int:
    if args.subject == shared.PARTS:
        return parts_app.run_test(args)
    cli.wait_passively()
    compat.apply()
    if not (args.out or args.eval or args.format_only or args.show_dir):
        raise UsageError('nothing to do: pass at least one of --eval, --out, --format-only, --show-dir')
    if args.eval and args.format_only:
        raise UsageError('--eval and --format-only exclude each other')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {args.out}: expected a .pkl or .pickle file')
    check_config_file(args.config)
    with distributed.join(args.launcher, args.local_rank) as ranks:
        return _run(args, ranks)


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    from mmdeploy_ext.families.detector import build, load_weights, read_config
    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.families.evaluate.loop import run_dataset

    cfg_options = shared.parse_cfg_options(args.cfg_options)
    shared.parse_cfg_options(args.eval_options, '--eval-options')
    device = resolve_device(args.device)
    detector = read_config(args.config, args.checkpoint, cfg_options, device, file=args.onnx or '')
    cfg, family = detector.cfg, detector.family
    if args.out:
        check_writable(args.out)
    work_dir = Path(
        args.work_dir or cfg.get('work_dir') or f'work_dirs/{evaluation.work_dir_name(args.config)}'
    )
    shared.refuse_of_kind(args, build_parser(), 'test', family)
    kind = kind_of(family)
    tested = kind.tested(cfg, family, args, work_dir)
    if ranks.rank == 0:
        print(f'engine: {engine_text(cfg, tested)}', flush=True)
    ranks.gather()
    dataset = evaluation.build_dataset(cfg)
    check_dataset(cfg, tested, family, dataset)
    if args.eval:
        evaluation.check_evaluation(cfg, dataset, args.eval)
    build(detector)
    tested.check(detector, kind.check)
    load_weights(detector)
    with after_weights():
        with open_network(detector, tested, ranks) as network:
            if network is None:
                if ranks.rank == 0:
                    print(f'{title_of(tested.settings["type"])} ({tested.target}): not evaluated')
                return 1
            results = run_dataset(network, cfg, dataset, ranks, args.tmpdir, args.gpu_collect)
        status = finish(detector, tested, args, dataset, results, ranks.size) if ranks.rank == 0 else 0
        return ranks.gather(status)[0]


def engine_text(cfg: Any, tested: TestedModel) -> str:
    """The engine that runs, for the first line, and how to run the other one if nobody chose it."""
    kind = tested.settings['type']
    if kind != 'TorchBackend':
        return f'{title_of(kind)}, file: {tested.target}'
    if tested.args.torch or cfg.get('backend_config'):
        return 'PyTorch'
    return f'PyTorch, since {cfg.filename} has no backend_config; --onnx runs the exported file'


@contextlib.contextmanager
def open_network(detector: Detector, tested: TestedModel, ranks: Ranks) -> Iterator[Network | None]:
    """Yield the model on its config's engine; None when it disagrees with the dump of the `_pth` run."""
    from mmdeploy_ext.proving.against_dump import check_dump

    if tested.settings['type'] == 'TorchBackend':
        with _opened_dump(detector, tested, ranks) as dump, tested.in_torch(detector, dump) as network:
            yield network
        return
    if ranks.rank == 0:
        export_if_stale(detector, tested)
    ranks.gather()
    engine = backend_config.engine_options(tested.settings)
    if ranks.size > 1 and 'threads' in BACKENDS[tested.settings['type']].keys:
        engine.setdefault('threads', threads_per_process())
    with tested.on_engine(detector, engine) as (network, dumped):
        agrees = True
        if ranks.rank == 0 and tested.settings.get('check_dump', True):
            folder = tested.settings.get('dump_dir') or tested.work_dir / 'dump'
            agrees = check_dump(dumped, detector, Path(folder)).passed
        agrees = all(ranks.gather(agrees))
        detector.model = None
        yield network if agrees else None


def threads_per_process() -> int:
    """This process's share of its cores, by LOCAL_WORLD_SIZE; at least 1."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1)


def export_if_stale(detector: Detector, tested: TestedModel) -> None:
    """Export unless the files are there with the metadata of a new export."""
    from mmdeploy_ext.bench.precision.dense_target import refuse_stale
    from mmdeploy_ext.families.detector_files import read_files
    from mmdeploy_ext.proving.provenance import stale_reason
    from mmdeploy_ext.spec import digest

    target, reason = tested.target, 'missing'
    if Path(target).exists():
        try:
            exported = read_files(target)
        except ModelFileError as error:
            raise ModelFileError(
                f'{error} (backend_config.onnx_file; delete the file to export it again)'
            ) from error
        expected = tested.expected_metadata(detector)
        reason = stale_reason(exported.metadata, expected[-1])
        if len(exported.paths) != len(expected):
            reason = f'incomplete ({len(exported.paths)} of {len(expected)} graphs)'
        if any(digest.state(path) == digest.DAMAGED for path in exported.paths):
            reason = 'damaged: its weights have changed since the export'
        if reason and tested.args.onnx:
            raise ModelFileError(
                f'{target}: is {reason}; --onnx FILE must be an export of this config and checkpoint; export '
                f'it again, or give --onnx without FILE'
            )
        if not reason:
            commands = sorted({edit for metadata in exported.all_metadata for edit in metadata.edits})
            edits = f'; {", ".join(commands)} after its export' if commands else ''
            print(f'{target}: up to date{edits}', flush=True)
            return
        for path in exported.paths:
            refuse_stale(path, reason)
    seconds = tested.export(detector)
    print(f'{target}: was {reason}; exported in {seconds:.1f} s', flush=True)


@contextlib.contextmanager
def _opened_dump(detector: Detector, tested: TestedModel, ranks: Ranks) -> Iterator[DumpWriter | None]:
    from mmdeploy_ext.base.dump import DumpWriter, replaced_dump

    dump, unit = tested.settings['dump'], tested.unit
    if dump is None:
        yield None
        return
    folder, samples = Path(dump['dir'] or tested.work_dir / 'dump'), dump[unit]
    facts = dict(model_facts(detector), **tested.dump_facts())
    with replaced_dump(folder) if ranks.rank == 0 else contextlib.nullcontext() as own:
        if own is not None:
            text = f'the first {samples} {unit}' if isinstance(samples, int) else f'{unit} {list(samples)}'
            print(f'dumping the tensors of {text} to {folder}', flush=True)
        staging = ranks.gather(own)[0]
        if not staging.is_dir():
            raise DataError(f'{folder}: all processes write their dump to it; share it between the machines')
        yield DumpWriter(staging, facts, samples, dump['tensors'])


def model_facts(detector: Detector) -> dict[str, str]:
    """`config`, a file name, `config_sha256` and `checkpoint_sha256`."""
    return dict(
        config=Path(detector.config).name,
        config_sha256=detector.config_sha256,
        checkpoint_sha256=detector.checkpoint_sha256,
    )


def run_facts(detector: Detector) -> dict[str, str]:
    """`code_sha256` and `dataset_sha256`, on which the metrics depend, too."""
    classes = [entry.to_json() for entry in detector.model_classes]
    datasets = [
        {key: value for key, value in settings.items() if key not in ('pipeline', 'dataset')}
        for settings in test_datasets(detector.cfg)
    ]
    facts = dict(code_sha256=classes, dataset_sha256=datasets)
    texts = {name: json.dumps(entries, sort_keys=True, default=str) for name, entries in facts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def finish(
    detector: Detector,
    tested: TestedModel,
    args: argparse.Namespace,
    dataset: Any,
    results: Any,
    processes: int,
) -> int:
    """Write results, evaluate, keep the metrics and print the difference of the engines.

    Returns:
        1 if a metric differs too much from PyTorch's, or if there is a run in PyTorch and no metric has a
        value; else 0, also without --eval, or if PyTorch's metrics are missing or of another config,
        checkpoint or data set.
    """
    import pickle

    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.proving.metrics import keep_metrics, summary

    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_bytes(pickle.dumps(results))
        print(f'results: {args.out}')
    eval_options = shared.parse_cfg_options(args.eval_options, '--eval-options')
    if args.format_only:
        eval_options.setdefault('jsonfile_prefix', str(tested.work_dir / 'results'))
        dataset.format_results(results, **eval_options)
        print(f'formatted results: {eval_options["jsonfile_prefix"]}*')
    settings = tested.settings
    source = detector.config if settings['type'] == 'TorchBackend' else tested.target
    engine = f'{title_of(settings["type"])} ({source}, samples: {len(dataset)})'
    if not args.eval:
        print(f'{engine}: not evaluated; for metrics, pass --eval METRIC')
        return 0
    facts = dict(model_facts(detector), **run_facts(detector), samples=len(dataset), processes=processes)
    facts |= dict(memory=settings.get('memory', 'keep'), input_size=tested.input_size())
    facts['evaluation'] = evaluation.settings_text(detector.cfg, args.eval, eval_options)
    metrics = evaluation.evaluate(detector.cfg, dataset, results, args.eval, eval_options)
    precision = backend_config.precision(settings)
    agrees = keep_metrics(tested.work_dir, settings['type'], metrics, facts, precision)
    print(f'{engine}: {summary(metrics)}')
    return 0 if agrees else 1


chosen_by = functools.partial(shared.subject_by_option, subjects=[shared.PARTS])
main = shared.program(run, build_parser, chosen_by)
