"""A comparison of `graph diff` on a terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import escape
from mmdeploy_ext.base.files import atomic_path, write_json
from mmdeploy_ext.base.pages import embedded_json, template
from mmdeploy_ext.graphs.diff.findings import Comparison, Divergence, Entry
from mmdeploy_ext.graphs.io.index import join_names
from mmdeploy_ext.proving.views.report import BOTTOM, HEIGHT, TOP, WIDTH, Axes, svg, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TEMPLATE = 'diff_report.html.j2'
"""File of the page's template, in the folder of this module."""
AROUND = 6
"""Printed tensors on either side of the first difference."""
MAX_CHANGES = 12
"""Printed changes of structure."""
MAX_NAMES = 5
"""Names in a sentence."""
FLOOR, CEILING = -9, 2
"""Decades of the plot; equal lies at the lower end, other shapes at the upper."""
COLOURS = {'equal': 'green', 'born here': 'bold red', 'passed on': 'yellow', 'inner': 'dim', 'unknown': 'dim'}
"""State of an entry -> its colour in the table."""


def figure(value: float | None, entry: Entry | None = None) -> str:
    if value is None:
        return 'differs' if entry is not None and entry.reason and entry.state == 'born here' else '-'
    return '0' if value == 0 else f'{value:.1e}'


def headline(comparison: Comparison) -> str:
    parts = [*_output_names(comparison), _numbers(comparison)]
    if comparison.graph:
        parts.append(f'the graph differs, although these inputs do not show it: {comparison.graph}')
    if comparison.results:
        parts.append(f'the results differ from your own code: {comparison.results}')
    if comparison.equal and not comparison.restructured and (places := comparison.other_values):
        names = join_names(places, MAX_NAMES)
        parts.append(f'attributes or constants differ at {names}, and other inputs may show it')
    return '; '.join(parts)


def verdict_word(comparison: Comparison) -> str:
    if not comparison.equal:
        return 'DIFFERS'
    differs_inside = comparison.restructured or comparison.other_values
    return 'EQUAL ON THESE INPUTS' if differs_inside else 'EQUAL'


def _output_names(comparison: Comparison) -> Iterator[str]:
    file = comparison.subject.get('file', 'the graph')
    for names, place in (
        (comparison.missing, f'missing in {file}'),
        (comparison.additional, f'only in {file}'),
    ):
        if names:
            noun = 'output {} is' if len(names) == 1 else 'outputs {} are'
            yield f'{noun.format(", ".join(names))} {place}'
    if comparison.renamed:
        pairs = [f'{mate} is named {name} here' for mate, name in comparison.renamed.items()]
        yield f'output {join_names(pairs, MAX_NAMES)} in {file}'


def _numbers(comparison: Comparison) -> str:
    first = comparison.first
    if comparison.agreeing and comparison.restructured:
        count = len(comparison.outputs)
        shared = ' that both have' if comparison.missing or comparison.additional else ''
        outputs = f'the output{shared} agrees' if count == 1 else f'all {count} outputs{shared} agree'
        inside = '' if first is None else f'; inside, the files first differ at {_with_operator(first)}'
        return f'equal numbers, different structure: {outputs}{inside}'
    if first is not None and not first.exact:
        nodes = join_names(first.nodes, MAX_NAMES)
        return f'the first difference is at one of {nodes}; they could not be separated'
    if first is not None:
        module = f' in {first.module}' if first.module else ''
        return f'the first difference is at node {_with_operator(first)}{module}'
    differing = [entry for entry in comparison.outputs if entry.state != 'equal']
    if differing:
        names = ', '.join(entry.tensor for entry in differing)
        if reasons := [f'{entry.tensor}: {entry.reason}' for entry in differing if entry.reason]:
            return f'{names} differ: {"; ".join(reasons)}'
        if comparison.guessed:
            return (
                f'{names} differ; a fresh export is needed to name the node, because a wrong value can match '
                f'another tensor of PyTorch (--no-fresh omits the export)'
            )
        return f'{names} differ, but no single node is the cause: accumulated rounding, or a tie that flips'
    if not comparison.compared:
        return 'nothing could be compared'
    flipped = sum(entry.state == 'passed on' for entry in comparison.entries)
    if flipped:
        return (
            f'{comparison.compared} tensors compared; no node differs and the outputs agree. {flipped} '
            'tensors in between differ (ties in an order that later nodes undo)'
        )
    return f'{comparison.compared} tensors compared, all equal'


def _with_operator(divergence: Divergence) -> str:
    operator = f'({divergence.op_type})'
    return divergence.node if divergence.node.endswith(operator) else f'{divergence.node} {operator}'


def print_comparison(comparison: Comparison, console: Console, everything: bool = False) -> None:
    """Print a table of tensors (all with `everything`), the result, the first difference, and notes."""
    word, colour = verdict_word(comparison), 'bold green' if comparison.equal else 'bold red'
    console.print(_table(comparison, everything))
    cli.say(console, headline(comparison), word, colour)
    evidence = []
    if comparison.first is not None and not comparison.agreeing:
        first, evidence = comparison.first, comparison.first.evidence
        for line in evidence:
            cli.say(console, f'  {line}')
        if not first.exact and len(first.nodes) > MAX_NAMES:
            cli.say(console, f'  all of them: {", ".join(first.nodes)}')
        nodes = list(dict.fromkeys(divergence.node for divergence in comparison.differences))
        if len(nodes) > 1:  # the first one may have several outputs
            cli.say(console, f'{len(nodes) - 1} more: {", ".join(nodes[1:6])}')
    changes = [change for change in comparison.changes if change['detail'] not in evidence]
    for change in changes[:MAX_CHANGES]:
        cli.say(console, f'structure: {change["kind"]} of {change["where"]}: {change["detail"]}')
    if len(changes) > MAX_CHANGES:
        cli.say(console, f'structure: {len(changes) - MAX_CHANGES} more changes, see --json or --report')
    for note in comparison.notes:
        cli.say(console, f'note: {note}')


def _table(comparison: Comparison, everything: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title, width in (('', None), ('tensor', 48), ('operator', None), ('paired with', 40)):
        table.add_column(title, overflow='fold', max_width=width)
    table.add_column('born here', justify='right')
    table.add_column('whole model', justify='right')
    previous = -1
    for entry in comparison.entries if everything else selected_entries(comparison):
        if entry.depth > previous + 1 and not everything:
            table.add_row('', '...', '', '', '', '')
        colour, previous = COLOURS[entry.state], entry.depth
        texts = map(escape, (entry.tensor, entry.op_type, entry.paired))
        errors = figure(entry.born, entry), figure(entry.error, entry)
        table.add_row(f'[{colour}]{escape(entry.state)}[/]', *texts, *errors)
    return table


def selected_entries(comparison: Comparison) -> list[Entry]:
    born = [entry.depth for entry in comparison.entries if entry.state == 'born here']
    depths = {entry.depth for entry in comparison.outputs}.union(born[:AROUND])
    middle = comparison.first_depth if comparison.first is not None else -1
    depths.update(range(middle - AROUND, middle + AROUND + 1))
    return [entry for entry in comparison.entries if entry.depth in depths]


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html` and `diff.json` into a folder and return the path of the page."""
    content = comparison.to_json()
    page = template(__file__, TEMPLATE, autoescape=True).render(
        comparison=comparison,
        word=verdict_word(comparison),
        figure=figure,
        headline=headline(comparison),
        plot=depth_plot(comparison),
        embedded=embedded_json(content),
    )
    write_json(folder / 'diff.json', content)
    with atomic_path(folder / 'report.html') as temporary:
        temporary.write_text(page, encoding='utf-8')
    return folder / 'report.html'


def depth_plot(comparison: Comparison) -> Markup:
    """Return an SVG of errors by depth: of the whole model, and of single nodes."""
    axes = Axes(len(comparison.entries), FLOOR, CEILING)
    words = {FLOOR: 'equal', 0: '1', CEILING: 'shape'}
    parts = list(axes.grid(lambda decade: ('base', words.get(decade, f'1e{decade}'))))
    bars = comparison.bars
    parts += [axes.line(bars.born, 'bar born'), axes.line(bars.free, 'bar whole')]
    points, dots = [], []
    for entry in comparison.entries:
        if entry.state in ('inner', 'unknown'):
            continue
        x = axes.x(entry.depth)
        free, born = (
            axes.y(10.0**CEILING if error is None and entry.reason else error or 0.0)
            for error in (entry.error, entry.born)
        )
        points.append(f'{x} {free}')
        kind, radius = ('wrong', 4.5) if entry.state == 'born here' else ('right', 1.8)
        errors = figure(entry.born, entry), figure(entry.error, entry)
        title = Markup('{}: of this node {}, whole model {}').format(entry.tensor, *errors)
        circle = f'<circle class="{kind}" cx="{x}" cy="{born}" r="{radius}">'
        dots.append(f'{circle}<title>{title}</title></circle>')
    if points:
        parts.append(f'<path class="whole" d="M{"L".join(points)}"/>')
    parts += dots
    if comparison.first is not None:
        x = axes.x(comparison.first_depth)
        parts.append(f'<line class="first" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(text(WIDTH / 2, HEIGHT - 6, 'depth: tensors in topological order'))
    return svg(parts, 'Relative error of every paired tensor along the depth of the graph')
