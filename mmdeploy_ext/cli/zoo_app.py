"""`zoo.py`: configs of installed libraries or of the user, exported with seeded weights and proven."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import compat
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import check_writable, write_json
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.proving.inputs.samples import read_images
from mmdeploy_ext.zoo.records import EXPORT_KINDS, Outcome, summary_line, zoo_content

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from mmdeploy_ext.families.base import Family

GIGABYTES = 6.0
SECONDS = 1800.0
SWEEPS = 3
"""Defaults of --memory (of a process), --timeout (of a config) and --sweeps."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Export every config with seeded weights, with one size and with any, and prove the '
        'files against PyTorch. What was proven once is not proven again until its graph or the code of the '
        'proof changes. Exit status 1 when a config of a known family is not proven.'
    )
    add = cli.adder(parser)
    add(
        'configs CONFIG',
        'files, folders and globs, also below the configs of the installed mmdet (default: all of them) '
        "or of the library that they begin with, as in 'mmdet3d/second/*.py'",
        nargs='*',
    )
    add('--out FOLDER', '', Path('work_dirs/zoo'), writes='{}')
    add('--heads CLASS...', 'only configs with these heads', ())
    add('--height HEIGHT', 'of the traced input, pixels (default: 320)', 320)
    add('--width WIDTH', 'of the traced input, pixels (default: 448)', 448)
    add('--sweeps SWEEPS', f'generated ones that LiDAR models are proven on (default: {SWEEPS})', SWEEPS)
    add(
        '--files',
        'of one size, and of any size and batch, which takes twice the time (default: both)',
        EXPORT_KINDS,
        nargs='+',
        choices=EXPORT_KINDS,
    )
    add('--jobs JOBS', 'processes (default: one per core, as memory holds)', 0)
    add('--timeout TIMEOUT', f'of a config, s (default: {SECONDS:g})', SECONDS)
    add('--memory MEMORY', f'of a process, GB (default: {GIGABYTES:g})', GIGABYTES)
    add('--list', 'print the configs and their parts; export nothing')
    cli.add_debug_option(parser)
    return parser


def seeded(cfg: Any, family: Family) -> torch.nn.Module:
    """Return the detector of a config with seeded weights."""
    from mmdeploy_ext.synthetic.seeded import seeded_model

    return seeded_model(cfg, family)


def run(args: argparse.Namespace) -> int:
    """Export and prove all configs; one line per config, and zoo.json."""
    for name in ('height', 'width', 'timeout', 'memory', 'sweeps'):
        if getattr(args, name) <= 0:
            raise UsageError(f'--{name} {getattr(args, name)}: expected more than 0')
    if args.jobs < 0:
        raise UsageError(f'--jobs {args.jobs}: expected 0 (one per core) or more')
    check_writable(args.out / 'zoo.json')
    cli.wait_passively()
    compat.apply()
    from mmdeploy_ext.zoo import configs

    files = configs.config_files(args.configs)
    reading = cli.tracked(configs.read_configs(files, args.heads), len(files), 'reading')
    selected = [config for config in reading if config is not None]
    if not selected:
        raise UsageError(
            f'none of {len(files)} configs has a model with such a head; --list shows what they have'
        )
    if args.list:
        for config in selected:
            parts = (f'{key}={value}' for key, value in config.parts.items() if value)
            print(' '.join([config.name, *parts]))
        return 0
    records = []
    for record in cli.tracked(_records(selected, args), len(selected), 'zoo'):
        records.append(record)
        outcomes = f'fixed {_text(record.fixed)}; dynamic {_text(record.dynamic)}'
        print(f'{record.config}: {outcomes}', flush=True)
        write_json(args.out / 'zoo.json', zoo_content(records))  # also of a run that is stopped
    print(f'{summary_line(records)}; {args.out / "zoo.json"}')
    return int(any(record.family and not record.proven for record in records))


def _records(selected: Sequence[Any], args: argparse.Namespace) -> Any:
    """Yield the record of each config, in the order in which they end."""
    from mmdeploy_ext.engines.registry import DEFAULT
    from mmdeploy_ext.zoo.config_proof import Settings
    from mmdeploy_ext.zoo.processes import Limits, run_all

    picture = read_images([DEFAULT_PICTURE], 1)[0]
    engine = DEFAULT.runner_options(threads=1)
    size = args.height, args.width
    settings = Settings(size, picture, seeded, engine, tuple(args.files), args.sweeps)
    jobs = args.jobs
    if not jobs:  # as many as cores and memory hold
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
        jobs = max(1, min(len(os.sched_getaffinity(0)), int(memory // args.memory)))
    return run_all(selected, settings, args.out, jobs, Limits(args.timeout, args.memory))


def _text(outcome: Outcome | None) -> str:
    """Return an outcome in words."""
    if outcome is None:
        return 'not tried'
    if outcome.proven:
        return f'proven, {outcome.matched} of {outcome.reference} detections, {outcome.seconds:.0f} s'
    return f'{outcome.reason}: {cli.one_line(outcome.why)[:160]}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool: 0 every config of a known family is proven, 1 one is not, 2 usage."""
    return cli.run(run, build_parser(), argv)
