"""Train a detector with mmdet's own loop: `python tools/train.py CONFIG [--work-dir DIR]`, on CPU or GPU.

Models of mmdet and of mmdet3d; `data.shuffler_sampler` of a config (StreamPETR's sequences) is honoured.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.core import cli

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_parser() -> argparse.ArgumentParser:
    """Give the parser; names and meanings are those of mmdet 2.28's own `tools/train.py`."""
    parser = cli.ArgumentParser(prog='tools/train.py', description=__doc__)
    parser.add_argument('config', help='config file')
    folder = parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config>)'
    )
    cli.writes(folder, '')
    parser.add_argument('--resume-from', help='checkpoint to go on from')
    parser.add_argument('--auto-resume', action='store_true', help='go on from the latest in --work-dir')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--gpu-id', type=int, default=0, help='GPU to use without a launcher')
    parser.add_argument('--seed', type=int, help='random seed (default: drawn and logged)')
    parser.add_argument('--diff-seed', action='store_true', help='another seed on every rank')
    parser.add_argument('--deterministic', action='store_true', help='deterministic cuDNN')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='config overrides')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the rate with the batch size')
    cli.add_debug_option(parser)
    return parser


def load_train_config(args: argparse.Namespace) -> Any:
    """Read the config, apply what the command line says, and prepare this process for it.

    Returns:
        The mmcv `Config`, with work_dir, seed, device and gpu_ids filled in.
    """
    from mmcv.runner import get_dist_info, init_dist
    from mmdet.apis import init_random_seed, set_random_seed
    from mmdet.utils import get_device, replace_cfg_vals, setup_multi_processes, update_data_root

    from mmdeploy_ext.apps.options import parse_cfg_options
    from mmdeploy_ext.core.config import load_config
    cfg = replace_cfg_vals(load_config(args.config, parse_cfg_options(args.cfg_options)))
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
    """Build `cfg.model` with the library that knows its type: mmdet, or mmdet3d and its plugins."""
    from mmdet.models import DETECTORS, build_detector
    if cfg.model.type in DETECTORS and 'mmdet3d' not in sys.modules:
        return build_detector(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
    from mmdet3d.models import build_model as build_model_3d
    return build_model_3d(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))


def configured_loaders(cfg: Any) -> contextlib.AbstractContextManager[None]:
    """Let mmdet 2.28's loop build mmdet3d's data sets, with the samplers that a config names in `data`."""
    names = ('shuffler_sampler', 'nonshuffler_sampler')
    samplers = {name: cfg.data[name] for name in names if name in cfg.data}
    import mmdet.apis.train

    from mmdeploy_ext.evaluate.evaluation import dataset_builder
    from mmdeploy_ext.stack.import_hook import patched
    if not samplers:
        return patched(mmdet.apis.train, build_dataset=dataset_builder())
    from projects.mmdet3d_plugin.datasets.builder import build_dataloader
    return patched(mmdet.apis.train, build_dataset=dataset_builder(),
                   build_dataloader=functools.partial(build_dataloader, **samplers))


def train(args: argparse.Namespace) -> int:
    """Build the model and its data from the config and run mmdet's training loop."""
    from mmdeploy_ext.stack import compat
    compat.apply()
    import mmdet
    from mmdet.apis import train_detector
    from mmdet.utils import collect_env, get_root_logger

    from mmdeploy_ext.core.files import check_writable
    from mmdeploy_ext.evaluate.evaluation import dataset_builder
    cfg = load_train_config(args)
    folder = Path(cfg.work_dir)
    check_writable(folder / Path(args.config).name)
    folder.mkdir(parents=True, exist_ok=True)
    text, copy = cfg.pretty_text, folder / Path(args.config).name  # seconds of a long config: once
    copy.write_text(text, encoding='utf-8') if copy.suffix == '.py' else cfg.dump(str(copy))
    timestamp = time.strftime('%Y%m%d_%H%M%S')
    logger = get_root_logger(log_file=str(folder / f'{timestamp}.log'), log_level=cfg.log_level)
    environment = '\n'.join(f'{key}: {value}' for key, value in collect_env().items())
    logger.info('environment:\n%s\nconfig:\n%s\nseed: %s', environment, text, cfg.seed)
    meta = {'env_info': environment, 'config': text, 'seed': cfg.seed,
            'exp_name': Path(args.config).name}  # before the build, which writes into the config

    model = build_model(cfg)
    model.init_weights()
    dataset = dataset_builder()(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    if cfg.get('checkpoint_config') is not None:
        cfg.checkpoint_config.meta = {'mmdet_version': mmdet.__version__, 'CLASSES': dataset.CLASSES}
    with configured_loaders(cfg):
        train_detector(model, [dataset], cfg, distributed=args.launcher != 'none',
                       validate=not args.no_validate, timestamp=timestamp, meta=meta)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 failed, 2 usage."""
    return cli.run(train, make_parser(), argv)


if __name__ == '__main__':
    raise SystemExit(main())
