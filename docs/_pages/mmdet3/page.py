"""Write docs/mmdet3.md and its Chinese twin from docs/mmdet3.json: `python -m docs._pages.mmdet3.page`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from docs._pages.mmdet3.kinds import KINDS
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import atomic_path, read_json
from mmdeploy_ext.core.pages import template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / 'docs/mmdet3.json'
PAGES = {'en': ROOT / 'docs/mmdet3.md', 'zh': ROOT / 'docs/zh-CN/mmdet3.md'}
TEMPLATES = {'en': 'page.md.j2', 'zh': 'page_zh.md.j2'}
RENAMED = ('deformable_detr/', 'detr/', 'dino/', 'mask2former/', 'maskformer/', 'rpn/', 'yolact/')
"""Folders of configs whose detectors have other names of weights in mmdet 2.28."""


def words(language: str) -> dict[str, Any]:
    """Return the words of a language: verdicts, and the reasons of what differs, by config."""
    text = Path(__file__).with_name('words.yaml').read_text(encoding='utf-8')
    return yaml.safe_load(text)[language]


def verdict(row: Mapping[str, Any]) -> str:
    """Return the key of a verdict."""
    if row.get('error'):
        return 'unmeasured'
    if row['equal']:
        return 'equal'
    return row.get('option', 'different')


def cells(row: Mapping[str, Any], texts: Mapping[str, Any], pixels: float | str) -> str:
    """Return the row of a config; `pixels` is the largest difference of a picture, or the two sizes."""
    kind, picture = verdict(row), pixels if isinstance(pixels, str) else f'{pixels:.0e}'
    name = f'`{row["config"].removesuffix(".py")}`'
    if kind == 'unmeasured':
        return f'| {name} | {row["head"]} | {texts["verdicts"][kind]} | | | | {picture} |'
    compared = row.get('with_option', row)
    matched = f'{compared["matched"]} / {compared["reference"]}'
    counts = f'{row["results2"]} / {row["results3"]}'
    verdict_text, worst = texts['verdicts'][kind], f'{compared["worst_score"]:.0e}'
    return f'| {name} | {row["head"]} | {verdict_text} | {matched} | {counts} | {worst} | {picture} |'


def reasons(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, Any]) -> list[str]:
    """Return a line for each row that is not equal: why, where that is known, or what was found."""
    lines = []
    for row in rows:
        if (kind := verdict(row)) not in ('different', 'unmeasured'):
            continue
        why = texts['reasons'].get(row['config'])
        if why is None:
            why = row['error'] if kind == 'unmeasured' else row['reason']
        lines.append(f'- `{row["config"].removesuffix(".py")}`: {why}')
    kinds = {verdict(row) for row in rows}
    return (
        [f'- {text}' for kind, text in texts['options'].items() if kind in kinds]
        + [f'- {text}' for text in texts['notes']]
        + lines
    )


def page(language: str, content: Mapping[str, Any]) -> str:
    """Return the page in a language."""
    texts, rows = words(language), content['rows']
    counts = {kind: sum(verdict(row) == kind for row in rows) for kind in texts['verdicts']}
    built = [row for row in rows if not row.get('error')]
    same = sum(not row['config'].startswith(RENAMED) for row in built)
    return template(__file__, TEMPLATES[language], keep_trailing_newline=True).render(
        names=dict(all=len(built), same=same),
        configs=content['configs'],
        summary=texts['summary'].format(
            **counts,
            options=sum(counts[kind] for kind in texts['options']),
            measured=len(built),
            missing=len(KINDS) - len(rows),
        ),
        rows=[cells(row, texts, content['pixels'][row['config']]) for row in rows],
        reasons=reasons(rows, texts),
    )


def body(args: argparse.Namespace) -> int:
    """Write the pages, or look whether they are up to date."""
    content, stale = read_json(DATA), 0
    for language, path in PAGES.items():
        text = page(language, content)
        if args.check:
            stale += not path.is_file() or path.read_text(encoding='utf-8') != text
            continue
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return int(stale > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 where `--check` finds a page out of date."""
    parser = cli.ArgumentParser(prog='python -m docs._pages.mmdet3.page', description='Write docs/mmdet3.md.')
    parser.add_argument('--check', action='store_true', help='write nothing; exit status 1 when out of date')
    cli.add_debug_option(parser)
    return cli.run(body, parser, argv)


if __name__ == '__main__':
    sys.exit(main())
