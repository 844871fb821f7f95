"""Train a detector with mmdet's loop: `python tools/train.py CONFIG [--work-dir DIR]`, on CPU or GPU.

Models of mmdet and of mmdet3d; `data.shuffler_sampler` of a config (StreamPETR's sequences) is honoured.
"""

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext import compat
from mmdeploy_ext.cli.options import parse_cfg_options
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.files import check_writable

READ_ENTRIES = (
    'model', 'data.train', 'optimizer', 'optimizer_config', 'lr_config', 'runner', 'checkpoint_config',
    'log_config', 'log_level', 'load_from', 'workflow',
)  # fmt: skip
"""Entries of a config that mmdet's loop reads without a default; `total_epochs` stands for `runner`."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; but for --debug its options are some of mmdet 2.28's `tools/train.py`."""
    parser = cli.ArgumentParser(description=__doc__)
    add = cli.adder(parser)
    add('config', 'config file')
    folder = add('--work-dir WORK_DIR', 'folder for logs and checkpoints (default: work_dirs/<config>)')
    cli.writes(folder, '')
    add('--resume-from RESUME_FROM', 'checkpoint to go on from')
    add('--auto-resume', 'go on from the latest in --work-dir')
    add('--no-validate', 'do not evaluate during training')
    add('--gpu-id GPU_ID', 'GPU to use without a launcher', 0)
    add('--seed SEED', 'random seed (default: drawn and logged)', type=int)
    add('--diff-seed', 'another seed on every rank')
    add('--deterministic', 'deterministic cuDNN')
    add('--cfg-options KEY=VALUE...', 'config overrides', [])
    add('--launcher', '', 'none', choices=['none', 'pytorch', 'slurm', 'mpi'])
    add('--local_rank --local-rank LOCAL_RANK', '', 0)
    add('--auto-scale-lr', 'scale the rate with the batch size')
    cli.add_debug_option(parser)
    return parser


def load_train_config(args: argparse.Namespace) -> Any:
    """Return the mmcv `Config` with work_dir, resume_from, auto_resume, gpu_ids, device and seed filled in.

    `work_dir` is --work-dir, else that of the config, else work_dirs/ and the config's name; `resume_from`
    is --resume-from, else that of the config. The device is the one that mmdet finds here. A seed that is not
    given is drawn; with --diff-seed the rank is added to it. `gpu_ids` is [--gpu-id], with a launcher a
    number from 0 on for each of its processes.

    `args` are those of `build_parser`. The random generators of this process are seeded, and it joins the
    others of a launcher. ConfigError: the config cannot be read, or lacks one of `READ_ENTRIES`.
    """
    from mmcv.runner import get_dist_info, init_dist
    from mmdet.apis import init_random_seed, set_random_seed
    from mmdet.utils import get_device, replace_cfg_vals, setup_multi_processes, update_data_root

    cfg = replace_cfg_vals(load_config(args.config, parse_cfg_options(args.cfg_options)))
    data, present = cfg.get('data'), set(cfg)
    if isinstance(data, dict):
        present.update(f'data.{key}' for key in data)
    if 'total_epochs' in cfg:
        present.add('runner')
    if missing := [name for name in READ_ENTRIES if name not in present]:
        raise ConfigError(
            f'{args.config}: has no {", ".join(missing)}, which training reads; most of them are in '
            f"mmdet's _base_/default_runtime.py and _base_/schedules"
        )
    update_data_root(cfg)
    setup_multi_processes(cfg)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    cfg.resume_from = args.resume_from or cfg.get('resume_from')
    cfg.auto_resume = args.auto_resume
    if args.auto_scale_lr:
        cfg.setdefault('auto_scale_lr', {})['enable'] = True
    if args.launcher != 'none':
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        init_dist(args.launcher, **cfg.dist_params)
    rank, world_size = get_dist_info()
    cfg.gpu_ids = [args.gpu_id] if args.launcher == 'none' else list(range(world_size))
    cfg.device = get_device()
    seed = init_random_seed(args.seed, device=cfg.device)
    cfg.seed = seed + rank if args.diff_seed else seed
    set_random_seed(cfg.seed, deterministic=args.deterministic)
    return cfg


def build_model(cfg: Any) -> Any:
    """Return the model of `cfg`, mmcv's config, built by the library that has its type.

    That is mmdet3d if mmdet does not have the type, or if mmdet3d is imported already; else it is mmdet.
    `init_weights` of the model is left to the caller.
    """
    from mmdet.models import DETECTORS
    from mmdet.models import build_detector as build

    if cfg.model.type not in DETECTORS or 'mmdet3d' in sys.modules:
        from mmdet3d.models import build_model as build
    return build(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))


def configured_loaders(cfg: Any) -> contextlib.AbstractContextManager[None]:
    """Inside the block mmdet's loop builds data sets by `dataset_builder`, and loaders as `cfg.data` says.

    That is mmdet3d's data sets, too, if mmdet3d is imported, and loaders with the samplers that `cfg.data`
    names as `shuffler_sampler` and `nonshuffler_sampler`; without either they are mmdet's loaders.
    """
    names = ('shuffler_sampler', 'nonshuffler_sampler')
    samplers = {name: cfg.data[name] for name in names if name in cfg.data}
    import mmdet.apis.train

    from mmdeploy_ext.compat.import_hook import patched
    from mmdeploy_ext.evaluate.evaluation import dataset_builder

    builders = dict(build_dataset=dataset_builder())
    if samplers:
        from mmdeploy_ext.models.datasets.loaders import build_dataloader

        builders['build_dataloader'] = functools.partial(build_dataloader, **samplers)
    return patched(mmdet.apis.train, **builders)


def train(args: argparse.Namespace) -> int:
    """Build the model and its data from the config, run mmdet's training loop, and return 0.

    `args` are those of `build_parser`. The config as it is trained, under the name of its file, the log and
    the checkpoints are written to the work directory, which is made. UsageError: the config cannot be written
    there; ConfigError: see `load_train_config`.
    """
    compat.apply()
    import mmdet
    from mmdet.apis import train_detector
    from mmdet.utils import collect_env, get_root_logger

    from mmdeploy_ext.evaluate.evaluation import dataset_builder
    from mmdeploy_ext.weights.convert.conversion import escaped_text

    cfg = load_train_config(args)
    folder = Path(cfg.work_dir)
    copy = folder / Path(args.config).name
    check_writable(copy)
    folder.mkdir(parents=True, exist_ok=True)
    text = escaped_text(cfg)  # seconds of a long config: once; before the build, which writes into it
    copy.write_text(text, encoding='utf-8') if copy.suffix == '.py' else cfg.dump(str(copy))
    timestamp = time.strftime('%Y%m%d_%H%M%S')
    logger = get_root_logger(log_file=str(folder / f'{timestamp}.log'), log_level=cfg.log_level)
    environment = '\n'.join(f'{key}: {value}' for key, value in collect_env().items())
    logger.info('environment:\n%s\nconfig:\n%s\nseed: %s', environment, text, cfg.seed)
    meta = dict(env_info=environment, config=text, seed=cfg.seed, exp_name=copy.name)
    model = build_model(cfg)
    model.init_weights()
    dataset = dataset_builder()(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    if cfg.get('checkpoint_config') is not None:
        cfg.checkpoint_config.meta = {'mmdet_version': mmdet.__version__, 'CLASSES': dataset.CLASSES}
    with configured_loaders(cfg):
        train_detector(
            model,
            [dataset],
            cfg,
            distributed=args.launcher != 'none',
            validate=not args.no_validate,
            timestamp=timestamp,
            meta=meta,
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 done, 1 failed, 2 a refused option or file.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(train, build_parser(), argv)
