"""`zoo.py`: configs of installed libraries or of the user, exported with seeded weights and proven."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.zoo.records import EXPORT_KINDS, Outcome, summary_line, zoo_content
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, one_line
from mmdeploy_ext.base.files import check_writable, write_json
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dev.zoo.configs import Config
    from mmdeploy_ext.families.base import Family

GIGABYTES = 6.0
SECONDS = 1800.0
SWEEPS = 3
"""Defaults of --memory (of a process), --timeout (of a config) and --sweeps."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Export every config with seeded weights, with fixed and with dynamic sizes, '
        'and prove the files against PyTorch. A second run continues, and repeats a proof only if the '
        'config, this package or a library has changed. Exit status 1 if a config of a '
        'known family is not proven.'
    )
    add = cli.adder(parser)
    add(
        'configs CONFIG',
        'files, folders and globs, also below the configs of the installed mmdet (default: all of them) '
        "or, as in 'mmdet3d/second/*.py', of another library",
        nargs='*',
    )
    add('--out FOLDER', '', Path('work_dirs/zoo'), writes='{}')
    add('--heads CLASS...', 'only configs with these heads', ())
    add('--height HEIGHT', 'height of the traced input, pixels (default: 320)', 320)
    add('--width WIDTH', 'width of the traced input, pixels (default: 448)', 448)
    add('--sweeps SWEEPS', f'generated ones that LiDAR models are proven on (default: {SWEEPS})', SWEEPS)
    add(
        '--files',
        'kinds of files to prove (default: both)',
        EXPORT_KINDS,
        nargs='+',
        choices=EXPORT_KINDS,
    )
    add(
        '--shard K/N',
        'only the K-th of N parts of the configs, such as 2/8; parts may share --out',
        (1, 1),
        type=shard,
    )
    add('--jobs JOBS', 'number of processes (default: one per core, within the memory)', 0)
    add('--timeout TIMEOUT', f'of a config, s (default: {SECONDS:g})', SECONDS)
    add('--memory MEMORY', f'of a process, GB (default: {GIGABYTES:g})', GIGABYTES)
    add('--list', 'print the configs and their parts; export nothing')
    return parser


def seeded(cfg: Any, family: Family) -> torch.nn.Module:
    """Detector of a config with seeded, repeatable random weights."""
    from dev.seeded.weights import seeded_model

    return seeded_model(cfg, family)


def run(args: argparse.Namespace) -> int:
    for name in ('height', 'width', 'timeout', 'memory', 'sweeps'):
        if not 0 < getattr(args, name) < math.inf:
            raise UsageError(f'--{name} {getattr(args, name)}: expected more than 0')
    if args.jobs < 0:
        raise UsageError(f'--jobs {args.jobs}: expected 0 (one per core) or more')
    check_writable(_zoo_file(args))
    cli.wait_passively()
    compat.apply()
    from dev.zoo import configs

    files = configs.config_files(args.configs)
    reading = cli.tracked(configs.read_configs(files, args.heads), len(files), 'reading')
    selected = [config for config in reading if config is not None]
    if not selected:
        raise UsageError(
            f'none of {len(files)} configs has a model with such a head; --list shows what they have'
        )
    index, count = args.shard
    groups = configs.group_by_model(selected)[index - 1 :: count]
    if not groups:
        raise UsageError(f'--shard {index}/{count}: the configs are of {index - 1} models at most')
    if args.list:
        for config in (config for group in groups for config in group):
            parts = (f'{key}={value}' for key, value in config.parts.items() if value)
            print(' '.join([config.name, *parts]))
        return 0
    return _prove_all(args, groups)


def _prove_all(args: argparse.Namespace, groups: Sequence[Sequence[Config]]) -> int:
    from dev.zoo import processes
    from dev.zoo.config_proof import Settings
    from mmdeploy_ext.engines.registry import DEFAULT
    from mmdeploy_ext.proving.inputs import read_images

    picture = read_images([DEFAULT_PICTURE], 1)[0]
    engine = DEFAULT.runner_options(threads=1) | dict(plan_memory=False)  # a second plan of all tensors
    size, kinds = (args.height, args.width), tuple(args.files)
    settings = Settings(size, picture, seeded, engine, kinds, args.sweeps)
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    jobs = args.jobs or max(1, min(len(os.sched_getaffinity(0)), int(memory // args.memory)))
    processes.import_libraries(groups[0][0])
    finished = [processes.finished_records(group, settings, args.out) for group in groups]
    waiting = [group for group, records in zip(groups, finished, strict=True) if not records]
    records = [record for group in finished for record in group]
    if records:
        print(f'{len(records)} configs are as an earlier run into {args.out} left them')
    limits = processes.Limits(args.timeout, args.memory)
    done, total, target = len(records), sum(map(len, groups)), _zoo_file(args)
    with cli.progress('zoo', total) as update:
        for group in processes.run_all(waiting, settings, args.out, jobs, limits):
            records += group
            done += len(group)
            for record in group:
                outcomes = f'fixed {_text(record.fixed)}; dynamic {_text(record.dynamic)}'
                print(f'[{done} of {total}] {record.config}: {outcomes}', flush=True)
            update(completed=done)
            write_json(target, zoo_content(records))  # also of a run that is stopped
    write_json(target, zoo_content(records))
    print(f'{summary_line(records)}; {target}')
    return int(any(record.family and not record.proven for record in records))


def _zoo_file(args: argparse.Namespace) -> Path:
    index, count = args.shard
    return args.out / ('zoo.json' if count == 1 else f'zoo-{index}-of-{count}.json')


def shard(text: str) -> tuple[int, int]:
    """K and N of 'K/N', the K-th shard of N; ArgumentTypeError: another text."""
    numbers = text.split('/')
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        index, count = map(int, numbers)
        if 1 <= index <= count:
            return index, count
    raise argparse.ArgumentTypeError(f'{text}: expected K/N with K from 1 to N, such as 2/8')


def _text(outcome: Outcome | None) -> str:
    if outcome is None:
        return 'not tried'
    if outcome.proven:
        return f'proven, {outcome.matched} of {outcome.reference} detections, {outcome.seconds:.0f} s'
    return f'{outcome.reason}: {one_line(outcome.why)[:160]}'


main = cli.program(run, build_parser)
