"""`docs/export-pitfalls.md` from the rules, in both languages: `python -m docs._pages.export_pitfalls`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from docs._pages.lint.example import OUTCOMES
from docs._pages.lint.examples import EXAMPLES
from mmdeploy_ext.core import cli
from mmdeploy_ext.lint.rules import EXPORTERS, RIGHT, RULES, THEMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.lint.rules import Rule


@dataclasses.dataclass(frozen=True)
class RuleWords:
    """A rule in another language.

    Attributes:
        title: what is done, in a few words.
        why: what goes wrong.
        fix: what to write instead.
    """

    title: str
    why: str
    fix: str


@dataclasses.dataclass(frozen=True)
class PageWords:
    """The words of one language, by default of English.

    Attributes:
        page: the file, below `docs/`.
        legend: heading of the table of outcomes.
        legend_columns: its columns.
        overview: heading of the table of rules.
        overview_columns: its first two columns.
        outcomes: outcome -> how it is called here and what it means.
        about_sizes: added to a rule that matters for dynamic axes only.
        fix: in front of what to write instead.
        instead: in front of the second module.
        same_module: in front of the second outcome where the module is the same one in evaluation mode.
        right: the second module is right with both exporters.
        brackets: how an addition is put in brackets; `{}` stands for it.
        colon: between two parts.
        semicolon: between two outcomes.
        stop: at the end of a title.
        themes: heading in English -> here; empty where the page is English.
        rules: id -> texts; empty where the page is English.
    """

    page: str = 'export-pitfalls.md'
    legend: str = 'What the outcomes mean'
    legend_columns: tuple[str, str] = ('outcome', 'meaning')
    overview: str = 'Overview'
    overview_columns: tuple[str, str] = ('rule', 'what')
    outcomes: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=lambda: {outcome: (outcome, meaning) for outcome, meaning in OUTCOMES.items()}
    )
    about_sizes: str = ' It matters for axes that stay dynamic.'
    fix: str = '**Fix.** '
    instead: str = 'Instead'
    same_module: str = 'The same module in evaluation mode'
    right: str = 'right with both exporters'
    brackets: str = ' ({})'
    colon: str = ': '
    semicolon: str = '; '
    stop: str = '.'
    themes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, RuleWords] = dataclasses.field(default_factory=dict)


def translated(file: Path) -> PageWords:
    """Read the words of another language."""
    words = yaml.safe_load(file.read_text(encoding='utf-8'))
    return PageWords(**words | {'rules': {name: RuleWords(**rule) for name, rule in words['rules'].items()}})


COMMAND = 'python -m docs._pages.export_pitfalls'
DOCS = Path(__file__).resolve().parents[1]
CHINESE = translated(DOCS / '_pages/export_pitfalls_zh.yaml')
LANGUAGES = (PageWords(), CHINESE)
MARK = '<!-- rules -->\n'
"""What is above it in a page is written by hand."""


def page(words: PageWords) -> str:
    """Return the page in one language."""
    by_hand = (DOCS / words.page).read_text(encoding='utf-8').partition(MARK)[0]
    parts = [by_hand + MARK + _legend(words), _overview(words)]
    for heading, rules in THEMES.items():
        parts.append(f'## {words.themes.get(heading, heading)}\n')
        parts += [_section(rule, words) for rule in rules]
    return '\n'.join(parts)


def _legend(words: PageWords) -> str:
    rows = [f'| {name} | {meaning} |' for name, meaning in words.outcomes.values()]
    heading = f'| {" | ".join(words.legend_columns)} |'
    return '\n'.join([f'## {words.legend}\n', heading, '|---|---|', *rows, ''])


def _overview(words: PageWords) -> str:
    rows = []
    for rule in RULES.values():
        met = ' | '.join(_shown(rule.outcomes[name], words) for name in EXPORTERS)
        rows.append(f'| [{rule.id}](#{rule.id}) | {words.rules.get(rule.id, rule).title} | {met} |')
    heading = f'| {" | ".join((*words.overview_columns, *EXPORTERS))} |'
    return '\n'.join([f'## {words.overview}\n', heading, '|---|---|---|---|', *rows, ''])


def _shown(outcome: str, words: PageWords) -> str:
    name = words.outcomes[outcome][0]
    return name if outcome == RIGHT else f'**{name}**'


def _section(rule: Rule, words: PageWords) -> str:
    text = words.rules.get(rule.id, rule)
    failing, passing = EXAMPLES[rule.id].failing.module, EXAMPLES[rule.id].passing.module
    about_sizes = words.about_sizes if EXAMPLES[rule.id].about_sizes else ''
    met = (f'{name}{words.colon}{_shown(rule.outcomes[name], words)}' for name in EXPORTERS)
    same = failing is passing
    second = (words.same_module if same else words.instead) + words.brackets.format(words.right)
    return '\n'.join([
        f'### {rule.id}\n',
        f'{text.title}{words.stop}\n',
        f'{text.why}{about_sizes}\n',
        f'{words.semicolon.join(met)}\n',
        f'```python\n{_source(failing)}```\n',
        f'{words.fix}{text.fix}\n',
        f'{second}{words.colon.rstrip()}\n',
        *([] if same else [f'```python\n{_source(passing)}```\n']),
    ])  # fmt: skip


def _source(module: type) -> str:
    """Return the code of a module, with the functions of autograd that it calls."""
    code = inspect.getsource(module)
    functions = [
        value for name, value in vars(sys.modules[module.__module__]).items()
        if isinstance(value, type) and name != module.__name__ and f'{name}.apply' in code
    ]  # fmt: skip
    return '\n\n'.join(inspect.getsource(part) for part in (*functions, module))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Write docs/export-pitfalls.md in both languages.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit status 1 when it is out of date'
    )
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the pages, or look whether they are up to date."""
    from mmdeploy_ext.core.files import atomic_path

    stale = 0
    for words in LANGUAGES:
        path = DOCS / words.page
        if args.check:
            current = path.is_file() and path.read_text(encoding='utf-8') == page(words)
            print(f'{words.page}: {"up to date" if current else f"out of date; run {COMMAND}"}')
            stale += not current
        else:
            with atomic_path(path) as temporary:
                temporary.write_text(page(words), encoding='utf-8')
    return int(stale > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
