"""What `graph.py diff` prints and writes: a table, and one page with errors along the depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import atomic_path, write_json
from mmdeploy_ext.core.pages import embedded_json, template
from mmdeploy_ext.core.printable import escape
from mmdeploy_ext.graph.diff.findings import Comparison, Difference, Entry
from mmdeploy_ext.graph.io.index import join_names
from mmdeploy_ext.proving.axes import BOTTOM, HEIGHT, TOP, WIDTH, Axes, svg, text

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = 'diff_report.html.j2'
AROUND = 6
"""Tensors that are printed on either side of the first difference."""
SHOWN_CHANGES = 12
LISTED = 5
"""Names in a sentence."""
FLOOR, CEILING = -9, 2
"""Decades of the plot; equal is drawn at the lower end, shapes that differ at the upper one."""
COLOURS = {'equal': 'green', 'born here': 'bold red', 'passed on': 'yellow', 'inner': 'dim', 'unknown': 'dim'}


def figure(value: float | None, entry: Entry | None = None) -> str:
    """Return an error as text; 'not comparable' where it is infinite."""
    if value is None:
        return 'differs' if entry is not None and entry.reason and entry.state == 'born here' else '-'
    return '0' if value == 0 else f'{value:.1e}'


def headline(found: Comparison) -> str:
    """Return the result in one sentence."""
    graph = [f'the graph is another one, whatever these inputs give: {found.graph}'] if found.graph else []
    return '; '.join([*_other_outputs(found), _numbers(found), *graph])


def _other_outputs(found: Comparison) -> Iterator[str]:
    """Yield which outputs only one of the two has, and which have other names."""
    file = found.subject.get('file', 'the graph')
    for names, where in ((found.missing, f'missing in {file}'), (found.additional, f'only in {file}')):
        if names:
            what = 'output {} is' if len(names) == 1 else 'outputs {} are'
            yield f'{what.format(", ".join(names))} {where}'
    if found.renamed:
        pairs = [f'{mate} is called {name}' for mate, name in found.renamed.items()]
        yield f'output {join_names(pairs, LISTED)} in {file}'


def _numbers(found: Comparison) -> str:
    first = found.first
    if found.agreeing and found.restructured:
        return _other_structure(found)
    if first is not None and not first.exact:
        nodes = join_names(first.nodes, LISTED)
        return f'the first difference is at one of {nodes}; they cannot be told apart'
    if first is not None:
        where = f' in {first.module}' if first.module else ''
        return f'the first difference is at node {_called(first)}{where}'
    wrong = [entry for entry in found.outputs if entry.state != 'equal']
    if wrong:
        names = ', '.join(entry.tensor for entry in wrong)
        if reasons := [f'{entry.tensor}: {entry.reason}' for entry in wrong if entry.reason]:
            return f'{names} differ: {"; ".join(reasons)}'
        if found.guessed:
            return (
                f'{names} differ, and no node can be told without a fresh export: a wrong value passes for '
                f'another tensor of PyTorch (--no-fresh leaves the export out)'
            )
        return f'{names} differ, and no single node is at fault: rounding that grows, or a tie that flips'
    if not found.compared:
        return 'nothing could be compared'
    flipped = sum(entry.state == 'passed on' for entry in found.entries)
    if flipped:
        return (
            f'{found.compared} tensors compared, no node is at fault, the outputs agree; {flipped} tensors '
            f'between differ (ties in an order that later nodes undo)'
        )
    return f'{found.compared} tensors compared, none differs'


def _called(place: Difference) -> str:
    """Return a node with its operator, which the label of one without a name has already."""
    kind = f'({place.op_type})'
    return place.node if place.node.endswith(kind) else f'{place.node} {kind}'


def _other_structure(found: Comparison) -> str:
    number, shared = len(found.outputs), ' that both have' if found.missing or found.additional else ''
    outputs = f'the output{shared} agrees' if number == 1 else f'all {number} outputs{shared} agree'
    inside = f'; inside, the files part at {_called(found.first)}' if found.first is not None else ''
    return f'equal numbers, other structure: {outputs}{inside}'


def print_comparison(found: Comparison, console: Console, everything: bool = False) -> None:
    """Print the result, the tensors around the first difference and the outputs, and what is known of it."""
    word, colour = ('EQUAL', 'bold green') if found.equal else ('DIFFERS', 'bold red')
    console.print(_table(found, everything))
    cli.say(console, headline(found), word, colour)
    first = None if found.agreeing else found.first
    said = first.evidence if first is not None else []
    for line in said:
        cli.say(console, f'  {line}')
    if first is not None and not first.exact and len(first.nodes) > LISTED:
        cli.say(console, f'  all of them: {", ".join(first.nodes)}')
    others = [] if first is None else list(dict.fromkeys(other.node for other in found.differences))
    if others := others[1:]:  # the first one may have other outputs
        cli.say(console, f'{len(others)} more: {", ".join(others[:5])}')
    changes = [change for change in found.changes if change['detail'] not in said]
    for change in changes[:SHOWN_CHANGES]:
        cli.say(console, f'structure: {change["kind"]} of {change["where"]}: {change["detail"]}')
    if len(changes) > SHOWN_CHANGES:
        cli.say(console, f'structure: {len(changes) - SHOWN_CHANGES} more changes, see --json or --report')
    for note in found.notes:
        cli.say(console, f'note: {note}')


def _table(found: Comparison, everything: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title, width in (('', None), ('tensor', 48), ('operator', None), ('paired with', 40)):
        table.add_column(title, overflow='fold', max_width=width)
    table.add_column('born here', justify='right')
    table.add_column('whole model', justify='right')
    previous = -1
    for entry in found.entries if everything else shown(found):
        if entry.depth > previous + 1 and not everything:
            table.add_row('', '...', '', '', '', '')
        colour, previous = COLOURS[entry.state], entry.depth
        cells = (entry.state, entry.tensor, entry.op_type, entry.paired)
        state, *rest = map(escape, cells)
        table.add_row(f'[{colour}]{state}[/]', *rest, figure(entry.born, entry), figure(entry.error, entry))
    return table


def shown(found: Comparison) -> list[Entry]:
    """Return the entries around the first difference, where other errors are born, and the outputs."""
    born = [entry.depth for entry in found.entries if entry.state == 'born here']
    chosen = {entry.depth for entry in found.outputs}.union(born[:AROUND])
    middle = found.first_depth if found.first is not None else -1
    chosen.update(range(middle - AROUND, middle + AROUND + 1))
    return [entry for entry in found.entries if entry.depth in chosen]


def write_report(found: Comparison, folder: Path) -> Path:
    """Write `report.html`, which is returned, and `diff.json`; other files in the folder stay."""
    content = found.to_json()
    facts = dict(headline=headline(found), plot=depth_plot(found), embedded=embedded_json(content))
    page = template(__file__, TEMPLATE, autoescape=True).render(found=found, figure=figure, **facts)
    write_json(folder / 'diff.json', content)
    with atomic_path(folder / 'report.html') as temporary:
        temporary.write_text(page, encoding='utf-8')
    return folder / 'report.html'


def depth_plot(found: Comparison) -> Markup:
    """Draw the error of every paired tensor by its depth: of the whole model, and born in the node."""
    paired = [entry for entry in found.entries if entry.state not in ('inner', 'unknown')]
    axes = Axes(len(found.entries), FLOOR, CEILING)
    words = {FLOOR: 'equal', 0: '1', CEILING: 'shape'}
    parts = list(axes.grid(lambda decade: ('base', words.get(decade, f'1e{decade}'))))
    parts += [axes.level(found.bars.born, 'bar born'), axes.level(found.bars.free, 'bar whole')]
    points = [f'{axes.x(entry.depth)} {axes.y(_drawn(entry, entry.error))}' for entry in paired]
    if points:
        parts.append(f'<path class="whole" d="M{"L".join(points)}"/>')
    parts += [_dot(axes, entry) for entry in paired]
    if found.first is not None:
        x = axes.x(found.first_depth)
        parts.append(f'<line class="first" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(text(WIDTH / 2, HEIGHT - 6, 'depth: tensors in topological order'))
    return svg(parts, 'Relative error of every paired tensor along the depth of the graph')


def _drawn(entry: Entry, value: float | None) -> float:
    return 10.0**CEILING if value is None and entry.reason else value or 0.0


def _dot(axes: Axes, entry: Entry) -> str:
    kind, radius = ('wrong', 4.5) if entry.state == 'born here' else ('right', 1.8)
    place = f'cx="{axes.x(entry.depth)}" cy="{axes.y(_drawn(entry, entry.born))}"'
    words = (entry.tensor, figure(entry.born, entry), figure(entry.error, entry))
    title = Markup('{}: born here {}, whole model {}').format(*words)
    return f'<circle class="{kind}" {place} r="{radius}"><title>{title}</title></circle>'
