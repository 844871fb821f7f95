"""Mutants of the files of every family, proven as the tools do: `python tests/mutation_run.py --seed 1`.

The exit status is 1 where a mutant is PROVEN that is not shown to be equivalent, or a proof ends with a
traceback. What was judged is in the JSON file of the family and seed, and is not judged again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.core.files import read_json, write_json  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mutation_judges import Judge
    from mutations import Mutant

OUT = REPO / 'work_dirs/mutations'
COUNT = 100
EQUIVALENT_SHARE = 0.05
"""Of the mutants; where more are drawn, others are drawn instead."""


def run_family(family: str, seeds: Iterable[int], count: int, out: Path) -> Iterator[dict[str, Any]]:
    """Yield the result of each seed for a family, whose right files are exported and proven once."""
    from mutation_judges import Judge
    from mutation_toys import names_of
    from remembered import loaded_once

    with tempfile.TemporaryDirectory(prefix='mutants_') as folder, loaded_once():
        judges = [Judge(name, Path(folder) / name) for name in names_of([family])]
        for seed in seeds:
            yield judge_draws(family, judges, seed, count, out / f'{family}.{seed}.json')


def judge_draws(family: str, judges: list[Judge], seed: int, count: int, path: Path) -> dict[str, Any]:
    """Judge mutants of a family's files, until there are as many as asked for.

    Args:
        family: key of `planting.TOYS_OF`.
        judges: of its toys.
        seed: of the draws; the same one gives the same mutants.
        count: of mutants.
        path: of the JSON file, from which what was judged before is taken.
    """
    from mutation_judges import EQUIVALENT, summary
    from mutations import Draws

    start = time.process_time()
    before = {one['digest']: one for one in (read_json(path)['judged'] if path.is_file() else ())}
    judged: list[dict[str, Any]] = []
    draws, equivalents = Draws([judge.export for judge in judges], seed), 0
    with cli.progress(f'{family}, seed {seed}', count) as show:
        while len(judged) < count and (mutant := draws.next()) is not None:
            entry = before.get(mutant.digest) or judge_mutant(judges[mutant.source], mutant)
            equivalents += entry['outcome'] == EQUIVALENT
            if entry['outcome'] == EQUIVALENT and equivalents > EQUIVALENT_SHARE * count:
                draws.give_back(mutant)
                continue
            judged.append(entry)
            show(completed=len(judged))
            if len(judged) % 20 == 0:
                write_json(path, dict(judged=[*judged, *_rest(before, judged)]))
    seconds = round(time.process_time() - start, 1)
    result = dict(family=family, seed=seed, cpu_s=seconds, **summary(judged), judged=judged)
    write_json(path, result)
    return result


def judge_mutant(judge: Judge, mutant: Mutant) -> dict[str, Any]:
    """Return what became of a mutant as plain data."""
    begin = time.process_time()
    judgement = judge.judge(mutant)
    facts = {name: getattr(mutant, name) for name in ('kind', 'where', 'detail', 'digest')}
    seconds = round(time.process_time() - begin, 3)
    reason = judgement.reason[-2000:]
    return dict(toy=judge.toy.name, **facts, outcome=judgement.outcome, reason=reason, cpu_s=seconds)


def _rest(before: dict[str, Any], judged: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what an earlier run judged and this one has not come to yet."""
    digests = {entry['digest'] for entry in judged}
    return (entry for digest, entry in before.items() if digest not in digests)


def title(result: dict[str, Any]) -> str:
    """Return the counts of a family's mutants in one line."""
    counts = ('mutants', 'proven', 'equivalent', 'on_inputs', 'refused', 'crashed')
    listed = ', '.join(f'{result[name]} {name.replace("_", " ")}' for name in counts)
    return f'{result["family"]}, seed {result["seed"]}: {listed}, {result["cpu_s"]} s of CPU'


def failures(result: dict[str, Any], count: int) -> list[str]:
    """Return why the result of a family does not pass, one line each."""
    lines = [
        f'{entry["outcome"].upper()} {entry["toy"]}: {entry["kind"]}: {entry["where"]}: {entry["detail"]}: '
        f'{entry["reason"].splitlines()[-1]}'
        for entry in result['judged']
        if entry['outcome'] in ('proven', 'crashed')
    ]
    if len(result['judged']) < count:
        lines.append(
            f'{result["family"]}: only {len(result["judged"])} mutants could be drawn, expected {count}'
        )
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Draw mutants of the files of every family and prove them: none may be PROVEN.'
    )
    add = cli.adder(parser)
    add('--seed N...', 'of the draws, one or several', type=int, required=True)
    add('--family NAME...', 'families of planting.TOYS_OF (default: all)')
    add('--count N', 'mutants of each family (default: %(default)s)', COUNT)
    add('--out FOLDER', 'of the JSON files (default: work_dirs/mutations)', OUT)
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run all families and print a line of each."""
    cli.wait_passively()
    compat.apply()
    logging.disable(logging.INFO)  # of mmcv, which lists every weight
    warnings.simplefilter('ignore')
    from planting import TOYS_OF

    failed = []
    for family in args.family or TOYS_OF:
        for result in run_family(family, args.seed, args.count, args.out):
            print(title(result), flush=True)
            for line in failures(result, args.count):
                print(line, flush=True)
                failed.append(line)
        gc.collect()
    return 1 if failed else 0


def main(argv: Iterable[str] | None = None) -> int:
    """Run the command."""
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
