"""The mutation table of docs/proof.md: `python tests/mutation_table.py --seed A B`, from two runs.

These are `python tests/mutation_run.py --seed A B` and `python tests/fault_run.py --out work_dirs/mutations`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from mmdeploy_ext.cli.tensorrt_table import insert_table  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.core.errors import DataError  # noqa: E402
from mmdeploy_ext.core.files import read_json  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUT = REPO / 'work_dirs/mutations'
MARK = 'mutations'
HEADS = {
    'docs/proof.md': (
        'family',
        'files, seed {}: mutants, PROVEN, equivalent',
        'code: faults, PROVEN',
    ),
    'docs/zh-CN/proof.md': (
        '模型族',
        '文件，种子 {}：变异数、PROVEN、等价',
        '代码：错误数、PROVEN',
    ),
}
"""Page -> heads: of the families, of each seed, of the faults in code."""


def read_files(out: Path, family: str, seed: int) -> list[int] | None:
    """Return how many mutants of a family there are for a seed, proven and equivalent; None without a run."""
    path = out / f'{family}.{seed}.json'
    content = read_json(path) if path.is_file() else {}
    if 'mutants' not in content:
        return None
    return [content[name] for name in ('mutants', 'proven', 'equivalent')]


def read_faults(out: Path, toys: Sequence[str]) -> list[int] | None:
    """Return how many faults of a family's toys ran, and how many were proven; None without a run."""
    paths = [path for toy in toys if (path := out / f'{toy}.faults.json').is_file()]
    outcomes = [outcome for path in paths for outcome in read_json(path)]
    return [len(outcomes), sum(outcome['proven'] for outcome in outcomes)] if outcomes else None


def rows_of(out: Path, seeds: Sequence[int], families: Mapping[str, Sequence[str]]) -> list[list[Any]]:
    """Return a row per family: its name, figures of each seed, figures of its faults.

    Raises:
        DataError: no family has run with one of the seeds.
    """
    rows = [
        [family, *(read_files(out, family, seed) for seed in seeds), read_faults(out, toys)]
        for family, toys in families.items()
    ]
    for place, seed in enumerate(seeds):
        if not any(row[place + 1] for row in rows):
            raise DataError(
                f'{out}: has no run of seed {seed}; run python tests/mutation_run.py --seed {seed}'
            )
    return rows


def table(rows: Sequence[Sequence[Any]], seeds: Sequence[int], heads: Sequence[str]) -> str:
    """Return the table; what did not run is an empty cell."""
    first, of_seed, last = heads
    lines = [[first, *(of_seed.format(seed) for seed in seeds), last]]
    lines.append(['---'] * len(lines[0]))
    for family, *figures in rows:
        lines.append([f'`{family}`', *(', '.join(map(str, counts or ())) for counts in figures)])
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Write the mutation table into docs/proof.md.')
    add = cli.adder(parser)
    add('--seed N...', 'of the runs', type=int, required=True)
    add('--out FOLDER', 'of the JSON files (default: work_dirs/mutations)', OUT)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the table into both pages."""
    from planting import TOYS_OF

    rows = rows_of(args.out, args.seed, TOYS_OF)
    for page, heads in HEADS.items():
        path = REPO / page
        shown = insert_table(path.read_text(encoding='utf-8'), table(rows, args.seed, heads), MARK)
        path.write_text(shown, encoding='utf-8')
        print(page)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
