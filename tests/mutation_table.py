"""The figures of the proof as tables in docs/proof.md, from what tests/matrix/test_mutations.py measured.

First `python -m pytest -m matrix tests/matrix/test_mutations.py`, then `python tests/mutation_table.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from mmdeploy_ext.apps.tensorrt_table import shown_in  # noqa: E402
from mmdeploy_ext.core.files import read_json, write_json  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS = REPO / 'work_dirs/mutations'
PAGES = ('docs/proof.md', 'docs/zh-CN/proof.md')
MARK = 'mutations'
HEADS = {
    'docs/proof.md': (
        'file',
        'mutants, PROVEN',
        'the same graph, PROVEN',
        'caught by inputs alone',
        'faults in our code, PROVEN',
    ),
    'docs/zh-CN/proof.md': (
        '文件',
        '变异数,其中 PROVEN',
        '图相同的变异,其中 PROVEN',
        '仅凭输入发现',
        '代码中植入的错误,其中 PROVEN',
    ),
}
"""Page -> heads of its first table; the second one has a row per kind, a column per file."""


def keep(name: str, part: str, figures: Any) -> None:
    """Keep a part of a file's figures on disk, beside those of other runs."""
    path = RESULTS / f'{name}.json'
    known = read_json(path) if path.is_file() else {}
    write_json(path, {**known, part: figures})


def table(results: Mapping[str, Mapping[str, Any]], heads: Sequence[str]) -> str:
    """Return both tables.

    Args:
        results: toy -> 'mutants', 'harmless', 'inputs' (kind -> [count, of]) and 'planted' ([proven, of]).
        heads: of the first one.
    """
    rows = [
        (
            f'`{name}`',
            *(_of(found.get(part), reverse=True) for part in ('mutants', 'harmless')),
            _share(found.get('inputs')),
            _of({'all': found['planted']} if 'planted' in found else None, reverse=True),
        )
        for name, found in results.items()
    ]
    kinds = list(dict.fromkeys(kind for found in results.values() for kind in found.get('inputs', {})))
    seen = [
        (
            f'`{kind}`',
            *(_share({kind: found.get('inputs', {}).get(kind, [0, 0])}) for found in results.values()),
        )
        for kind in kinds
    ]
    tables = [_table(heads, rows)]
    if kinds:
        tables.append(_table((heads[3], *(f'`{name}`' for name in results)), seen))
    return '\n'.join(tables)


def _sums(counts: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    return tuple(sum(column) for column in zip(*counts.values(), strict=True)) or (0, 0)


def _of(counts: Mapping[str, Sequence[int]] | None, reverse: bool = False) -> str:
    if not counts:
        return ''
    count, of = _sums(counts)
    return f'{of}, {count}' if reverse else f'{count} / {of}'


def _share(counts: Mapping[str, Sequence[int]] | None) -> str:
    if not counts or not _sums(counts)[1]:
        return ''
    count, of = _sums(counts)
    return f'{count} / {of} ({100 * count / of:.0f} %)'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ['---'] * len(heads), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def main() -> int:
    """Write the tables into both pages."""
    results = {path.stem: read_json(path) for path in sorted(RESULTS.glob('*.json'))}
    for page in PAGES:
        path = REPO / page
        path.write_text(shown_in(path.read_text(), table(results, HEADS[page]), MARK))
        print(page)
    return 0


if __name__ == '__main__':
    sys.exit(main())
