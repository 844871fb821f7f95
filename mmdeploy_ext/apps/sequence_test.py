"""`test.py` for models of frames: whole scenes per process, results in data-set order, by either engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import backend_config
from mmdeploy_ext.apps.options import check_engine_kind, refuse_given
from mmdeploy_ext.apps.test_app import (
    Run,
    build_parser,
    dump_place,
    finish,
    resolve_device,
    stale_reason,
    threads_per_process,
)
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.evaluate.loop import FrameDump
    from mmdeploy_ext.runtime.frames import Stepper

DEMOS = {True: 'streampetr_video.py', False: 'lidar_demo.py'}
"""Whether the model has a memory -> what draws its boxes."""


def run_sequence(args: argparse.Namespace, cfg: Any, cfg_options: dict[str, Any], work_dir: Path) -> int:
    """Evaluate a model of frames on the engine of its config.

    Returns:
        The exit status.
    """
    from mmdeploy_ext.core import distributed
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import check_output
    from mmdeploy_ext.evaluate import evaluation, loop
    from mmdeploy_ext.families.base import find_family

    family = find_family(cfg)
    drawn = f'these models are drawn by tools/demo/{DEMOS[family.memory]}'
    refuse_given(args, build_parser(), ('show_dir', 'show_score_thr'), drawn)
    refuse_given(args, build_parser(), ('tmpdir', 'gpu_collect'), 'models of frames collect in memory')
    settings = backend_config.read_settings(cfg, family)
    check_engine_kind(settings['type'], settings.get('inference_precision'))
    options = backend_config.graph_options(cfg, settings, family)
    # where a folder of graphs goes is checked with its contract, below
    backend_config.check_targets({**settings, 'onnx_file': None}, work_dir)
    dataset = evaluation.build_dataset(cfg)
    frames = len(loop.sample_scenes(family, dataset))
    if args.eval:
        evaluation.check_tables(cfg, dataset)

    def check(cfg: Any, family: Any, model: Any) -> None:
        nonlocal options
        try:
            options = deploy.check_options(options, cfg, family, model)
            if settings.get('onnx_file'):
                check_output(str(settings['onnx_file']), options, family.files, 'onnx_file=')
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error
        _check_dump(cfg, settings['dump'], frames, family.dump_names)

    rank, world_size = distributed.start(args.launcher, args.local_rank)
    device = resolve_device(args.device)
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, device, check)
    this = Run(deployment, settings, work_dir, rank, world_size, args.fuse_conv_bn)
    with after_weights():
        stepper, dump = make_stepper(this, options)
        if stepper is None:
            return 1
        results = loop.run_frames(
            stepper,
            deployment.family,
            dataset,
            rank=rank,
            world_size=world_size,
            workers=cfg.data.get('workers_per_gpu', 2),
            dump=dump,
            model=deployment.model,
            keep_memory=settings.get('memory') != 'reset',
        )
        ordered = loop.collect(results, len(dataset), world_size)
        return finish(this, args, dataset, ordered) if rank == 0 else 0


def _check_dump(cfg: Any, dump: dict[str, Any] | None, frames: int, names: Sequence[str]) -> None:
    """Refuse frames and tensors that will not come, before an hour passes without them."""
    if dump is None:
        return
    asked = [] if isinstance(dump['frames'], int) else dump['frames']
    beyond = [index for index in asked if index >= frames]
    if beyond:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.frames names {beyond}; data.test has {frames} frames, '
            f'counted from 0'
        )
    unknown = sorted(set(dump['tensors'] or ()) - set(names))
    if names and unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.tensors names {unknown}, which this model does not have; '
            f'there are {sorted(names)}'
        )


def make_stepper(this: Run, options: Options) -> tuple[Stepper | None, FrameDump | None]:
    """Return the engine of the config as a stepper, and what is dumped; None when it disagrees with the dump.

    Files that are missing, or were made from another config or checkpoint, are exported first, by rank 0.
    """
    family, model = this.deployment.family, this.deployment.model
    if this.backend_config['type'] == 'TorchBackend':
        return family.reference(_fused(model) if this.fuse else model), _dump(this)
    target = str(this.backend_config.get('onnx_file') or _default_target(this, options))
    if this.rank == 0:
        export_if_stale(this, options, target)
    engine = dict(engine=this.backend_config['type'], **backend_config.engine_options(this.backend_config))
    if this.world_size > 1:
        import torch.distributed

        torch.distributed.barrier()
        engine.setdefault('threads', threads_per_process())
    from mmdeploy_ext.deploy.sequence_files import read_files

    files = read_files(target)
    stepper = family.runner(files.paths, engine)
    if not _agrees_with_dump(this, stepper, files.metadata):
        return None, None
    this.deployment.model = None
    return stepper, None


def _fused(model: Any) -> Any:
    from mmdeploy_ext.exporting.fold import fuse

    return fuse(model)


def _default_target(this: Run, options: Options) -> Path:
    name = f'{this.work_dir.name}_{options.contract}'
    return this.work_dir / (f'{name}.onnx' if options.contract == 'fork' else name)


def export_if_stale(this: Run, options: Options, target: str) -> bool:
    """Export unless the files are there and were made from this config, checkpoint and these options.

    Returns:
        Whether they were exported.

    Raises:
        ModelFileError: they are stale and one is quantised: an export would put a float32 file in its place.
    """
    from mmdeploy_ext.deploy.sequence_files import check_output, export_sequence, graph_metadata, read_files
    from mmdeploy_ext.quantize.dense_target import refuse_stale

    check_output(target, options, this.deployment.family.files, 'onnx_file=')
    reason = 'missing'
    if Path(target).exists():
        try:
            found = read_files(target)
        except ModelFileError as error:
            raise ModelFileError(
                f'{error} (backend_config.onnx_file; delete it to have it exported)'
            ) from error
        graphs = this.deployment.family.graphs(this.deployment.model, options)
        reason = stale_reason(found.metadata, graph_metadata(this.deployment, options, graphs[-1]))
        if len(found.paths) != len(graphs):
            reason = f'incomplete: {len(found.paths)} of {len(graphs)} graphs'
        if not reason:
            print(f'{target}: up to date', flush=True)
            return False
        for path in found.paths:
            refuse_stale(path, reason)
    _, seconds = export_sequence(this.deployment, options, target)
    print(f'{target}: was {reason}; exported in {seconds:.1f} s', flush=True)
    return True


def _dump(this: Run) -> FrameDump | None:
    from mmdeploy_ext.evaluate.loop import FrameDump

    dump = this.backend_config['dump']
    if dump is None:
        return None
    chosen = dump['frames']
    folder, facts = dump_place(
        this, f'the first {chosen} frames' if isinstance(chosen, int) else f'frames {list(chosen)}'
    )
    return FrameDump(folder, facts, dump['frames'], dump['tensors'])


def _agrees_with_dump(this: Run, stepper: Stepper, metadata: Metadata) -> bool:
    """Run the engine over what the `_pth` run dumped, when there is such a dump."""
    if this.rank != 0 or not this.backend_config.get('check_dump', True):
        return True
    from mmdeploy_ext.proof.sequence_dump import check_frames

    folder = Path(this.backend_config.get('dump_dir') or this.work_dir / 'dump')
    return check_frames(stepper, metadata, this.deployment, folder)
