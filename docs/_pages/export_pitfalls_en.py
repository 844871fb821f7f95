"""What `docs/export-pitfalls.md` says around the rules, in English, and the shape of a translation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.lint.rule import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND = 'python -m docs._pages.export_pitfalls'


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
    """One language of the page.

    Attributes:
        page: the file, below `docs/`.
        introduction: everything above the tables.
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
        comma: between two outcomes in brackets.
        stop: at the end of a title.
        themes: heading in English -> here; empty where the page is English.
        rules: id -> texts; empty where the page is English.
    """

    page: str
    introduction: str
    legend: str
    legend_columns: tuple[str, str]
    overview: str
    overview_columns: tuple[str, str]
    outcomes: Mapping[str, tuple[str, str]]
    about_sizes: str
    fix: str
    instead: str
    same_module: str
    right: str
    brackets: str = ' ({})'
    colon: str = ': '
    semicolon: str = '; '
    comma: str = ', '
    stop: str = '.'
    themes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, RuleWords] = dataclasses.field(default_factory=dict)


ENGLISH = PageWords(
    page='export-pitfalls.md',
    introduction=f"""[English](export-pitfalls.md) | [简体中文](zh-CN/export-pitfalls.md)

# Pitfalls of ONNX export

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
""",
    legend='What the outcomes mean',
    legend_columns=('outcome', 'meaning'),
    overview='Overview',
    overview_columns=('rule', 'what'),
    outcomes={outcome: (outcome, meaning) for outcome, meaning in OUTCOMES.items()},
    about_sizes=' It matters for axes that stay dynamic.',
    fix='**Fix.** ',
    instead='Instead',
    same_module='The same module in evaluation mode',
    right='right with both exporters',
)
"""The page in English."""
