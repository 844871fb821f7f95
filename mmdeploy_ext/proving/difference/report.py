from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import escape
from mmdeploy_ext.base.files import atomic_path, write_json
from mmdeploy_ext.base.pages import embedded_json, template
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.graphs.diff.findings import Comparison, Divergence, Entry
from mmdeploy_ext.graphs.io.files import plain_path
from mmdeploy_ext.graphs.io.index import join_names
from mmdeploy_ext.proving.views.report import BOTTOM, HEIGHT, TOP, WIDTH, Axes, svg, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from mmdeploy_ext.spec.tensors import Stage


# Records of PyTorch's tensors: every module's output, every tap, every tensor in between.


NOT_COPIED = (
    'detach',
    'alias',
    'view',
    '_unsafe_view',
    'unsqueeze',
    'squeeze',
    'lift_fresh',
    '_reshape_alias',
    'expand',
    't',
)
"""Operators that keep values and order, expand, or turn weights."""


PACKAGES = Path(torch.__file__).parent, Path(__file__).parents[2]
"""Folders of PyTorch and of this package."""
LIBRARIES = tuple(os.path.join(folder, '') for package in PACKAGES for folder in (package, package.resolve()))
"""The same as text with a final separator, also without symbolic links."""


@dataclasses.dataclass
class TensorRecord:
    """One tensor that PyTorch made.

    Attributes:
        operator: e.g. 'convolution'; 'part of addmm' for a tensor inside it; 'view' for an unrecorded
            operator.
        module: path of the innermost module that ran, or ''.
        line: 'file:line' of the user's code.
        names: its names as a tap and as a tensor of the graph.
        outputs_of: modules that return it, inner ones first, e.g. 'bbox_head.atss_cls (call 2)'.
    """

    value: np.ndarray
    operator: str
    module: str
    line: str = ''
    names: list[str] = dataclasses.field(default_factory=list)
    outputs_of: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        source = self.outputs_of[0] if self.outputs_of else self.module
        if not self.names:
            return source
        return f'{self.names[0]}: {source}' if source else self.names[0]


class TensorRecorder(TorchDispatchMode):
    """Copies the outputs of operators while it is active.

    Attributes:
        records: in the order of execution.
        calls: module path -> number of finished calls.
        stack: paths of the running modules, the innermost last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[TensorRecord] = []
        self.calls: dict[str, int] = collections.Counter()
        self.stack: list[str] = []
        # address of a tensor's memory -> indices of the records of tensors that were there
        self._at: dict[int, list[int]] = collections.defaultdict(list)
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__.rstrip('_') or func.overloadpacket.__name__
        if not self._paused and operator not in NOT_COPIED:
            self._keep_parts(operator, args)  # first: a result is searched among records behind its parts
            for tensor in _tensors(result):
                self.keep(tensor, operator)
        return result

    def keep(self, tensor: torch.Tensor, operator: str) -> int:
        """Copy a tensor that `operator` made; return the index of its record."""
        module = self.stack[-1] if self.stack else ''
        self.records.append(TensorRecord(self._copy(tensor), operator, module, line_of_user()))
        self._at[tensor.data_ptr()].append(len(self.records) - 1)
        return len(self.records) - 1

    def _copy(self, tensor: torch.Tensor) -> np.ndarray:
        self._paused = True
        try:
            return to_array(tensor)
        finally:
            self._paused = False

    def _keep_parts(self, operator: str, args: Sequence[Any]) -> None:
        if operator not in PARTS:
            return
        self._paused = True
        try:
            parts = PARTS[operator](*args)
        finally:
            self._paused = False
        for tensor in parts:
            self.keep(tensor, f'part of {operator}')

    def name(self, name: str, tensor: torch.Tensor) -> None:
        """Name the record of a tensor; a view of another shape becomes a new record."""
        index = self._find(tensor)
        if self.records[index].value.shape != tensor.shape:
            index = self.keep(tensor, 'view')
        self.records[index].names.append(name)

    def leave(self, path: str, outputs: Any) -> None:
        indices = [self._find(leaf) for leaf in _tensors(outputs)]
        self.stack.pop()
        self.calls[path] += 1
        for index in indices:
            self.records[index].outputs_of.append(f'{path or "the model"} (call {self.calls[path]})')

    def _find(self, tensor: torch.Tensor) -> int:
        values = self._copy(tensor).tobytes()
        for index in reversed(self._at[tensor.data_ptr()]):
            record = self.records[index].value
            if record.nbytes == len(values) and record.tobytes() == values:
                return index
        return self.keep(tensor, 'view')


def line_of_user() -> str:
    """Return the innermost 'file:line' outside of `LIBRARIES`, or ''."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*LIBRARIES, '<')):
            return f'{file}:{frame.f_lineno}'
        frame = frame.f_back
    return ''


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> list[torch.Tensor]:
    plain = torch.nn.functional.group_norm(x, groups, None, None, eps)
    return [plain] if weight is None else [plain, plain * weight.view(-1, *[1] * (x.dim() - 2))]


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> list[torch.Tensor]:
    plain = torch.nn.functional.layer_norm(x, list(shape), None, None, eps)
    return [plain] if weight is None else [plain, plain * weight]


PARTS: dict[str, Callable[..., list[torch.Tensor]]] = {
    'addmm': lambda bias, left, right, **_: [left @ right],
    'native_group_norm': _group_norm,
    'native_layer_norm': _layer_norm,
}
"""Operator -> function of its arguments that returns the tensors inside it."""


def record_stages(stages: Sequence[Stage], inputs: Mapping[str, torch.Tensor]) -> TensorRecorder:
    """Run the modules of a graph in order, and record their results."""
    recorder, tensors = TensorRecorder(), dict(inputs)
    with torch.no_grad(), collect_taps() as taps:
        for stage in stages:
            with _watched(stage.module, recorder), recorder:
                outputs = stage.module(*(tensors[name] for name in stage.inputs))
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            tensors.update(zip(stage.outputs, outputs, strict=True))
            for name in stage.outputs:
                recorder.name(name, tensors[name])
    for name, tensor in taps.items():
        if name not in tensors and isinstance(tensor, torch.Tensor) and tensor.numel():
            recorder.name(name, tensor)
    return recorder


@contextlib.contextmanager
def _watched(module: torch.nn.Module, recorder: TensorRecorder) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        hooks.callback(recorder.stack.clear)
        for path, inner in module.named_modules():
            if path:
                name = plain_path(path)
                enter = inner.register_forward_pre_hook(lambda *_, name=name: recorder.stack.append(name))
                leave = inner.register_forward_hook(
                    lambda _module, _args, outputs, name=name: recorder.leave(name, outputs), always_call=True
                )
                hooks.enter_context(enter)
                hooks.enter_context(leave)
        yield


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
