"""`docs/export-pitfalls.md`, made from the rules: `python -m mmdeploy_ext.lint.docs` writes it."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext import cli
from mmdeploy_ext.lint.rule import EXPORTERS, OUTCOMES, RIGHT
from mmdeploy_ext.lint.rules import RULES, THEMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.lint.rule import Rule

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'export-pitfalls.md'
COMMAND = 'python -m mmdeploy_ext.lint.docs'
INTRODUCTION = f"""# Pitfalls of ONNX export

Made from the rules in `mmdeploy_ext/lint/rules` by `{COMMAND}`; do not edit.

Lists of "avoid this in a model that is exported" are old, and copied from each other. This one is executable:
every entry is a module that was exported on this stack with both exporters of torch 2.13 (TorchScript at
opset 17, dynamo at opset 18), and run in ONNX Runtime (CPU) on inputs that the export never saw. The tests do
it again:

```bash
python -m pytest tests/mmdeploy_ext/lint -m "not matrix"
python -m pytest tests/mmdeploy_ext/lint -m matrix
```

The first command holds the linter and the TorchScript exporter, the second one the dynamo exporter.

## Is my model affected?

```bash
python tools/onnx/lint.py configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth --dynamic-export
```

runs the model once under observation and names the lines. `--exporter both` tries both exporters, `--notes`
shows what they get right too, `--json FILE` writes all of it. The exit status is 0 clean, 1 with an error,
2 usage. For any other module:

```python
from mmdeploy_ext.lint import check

report = check(module, (images, image_sizes))
for finding in report:
    print(finding.severity, finding.rule, finding.site, finding.details)
```

`check` follows which tensors depend on the values of which inputs, and which numbers come from sizes. A
number taken out of a parameter is no finding; the same line with a number taken out of an input is. With
`other_inputs=` of other sizes, only sizes that really differ count. A finding is an error where an exporter
that was asked for goes wrong with it, else a warning or a note.

What it cannot see: sizes that go into numpy as plain numbers, code of C++ extensions, TorchScript functions,
branches that the example did not take.
"""


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION, _legend(), _overview()]
    for heading, rules in THEMES.items():
        parts.append(f'## {heading}\n')
        parts += [_section(rule) for rule in rules]
    return '\n'.join(parts)


def _legend() -> str:
    rows = [f'| {outcome} | {meaning} |' for outcome, meaning in OUTCOMES.items()]
    return '\n'.join(['## What the outcomes mean\n', '| outcome | meaning |', '|---|---|', *rows, ''])


def _overview() -> str:
    rows = []
    for rule in RULES.values():
        met = ' | '.join(_shown(rule.outcomes[name]) for name in EXPORTERS)
        rows.append(f'| [{rule.id}](#{rule.id}) | {rule.title} | {met} |')
    heading = f'| rule | what | {" | ".join(EXPORTERS)} |'
    return '\n'.join(['## Overview\n', heading, '|---|---|---|---|', *rows, ''])


def _shown(outcome: str) -> str:
    return outcome if outcome == RIGHT else f'**{outcome}**'


def _section(rule: Rule) -> str:
    met = [f'{name}: {_shown(rule.outcomes[name])}' for name in EXPORTERS]
    passing = [rule.expected('passing', name) for name in EXPORTERS]
    better = 'right with both exporters' if set(passing) == {RIGHT} else ', '.join(
        f'{name}: {_shown(outcome)}' for name, outcome in zip(EXPORTERS, passing, strict=True)
    )  # fmt: skip
    sizes = ' It matters for axes that stay dynamic.' if rule.about_sizes else ''
    same = rule.failing.module is rule.passing.module
    second = 'the same module in evaluation mode' if same else 'instead'
    return '\n'.join([
        f'### {rule.id}\n',
        f'{rule.title}.\n',
        f'{rule.why}{sizes}\n',
        f'{"; ".join(met)}\n',
        f'```python\n{_source(rule.failing.module)}```\n',
        f'**Fix.** {rule.fix}\n',
        f'{second} ({better}):\n'.capitalize(),
        *([] if same else [f'```python\n{_source(rule.passing.module)}```\n']),
    ])  # fmt: skip


def _source(module: type) -> str:
    """Return the code of a module without its docstring, with the functions of autograd that it calls."""
    code = inspect.getsource(module)
    others = [
        value for name, value in vars(sys.modules[module.__module__]).items()
        if isinstance(value, type) and name != module.__name__ and f'{name}.apply' in code
    ]  # fmt: skip
    return '\n\n'.join(_without_docstring(inspect.getsource(part)) for part in (*others, module))


def _without_docstring(code: str) -> str:
    lines = code.splitlines(keepends=True)
    start = next((index for index, line in enumerate(lines) if line.strip().startswith('"""')), None)
    if start is not None:
        del lines[start : start + (2 if lines[start + 1 : start + 2] == ['\n'] else 1)]
    return ''.join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Write docs/export-pitfalls.md from the rules of the linter.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit status 1 when it is out of date'
    )
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page, or look whether it is up to date."""
    from mmdeploy_ext.files import atomic_path

    if args.check:
        current = PAGE.is_file() and PAGE.read_text(encoding='utf-8') == page()
        print(f'{PAGE.name}: {"up to date" if current else f"out of date; run {COMMAND}"}')
        return int(not current)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page(), encoding='utf-8')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
