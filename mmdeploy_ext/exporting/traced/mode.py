"""The mode under which a test path is traced: Python decisions that tensors can make stay in the graph.

A trace freezes what leaves the tensors: `if`, `int()`, `len()`, numpy. `Tracing` avoids the usual cases (a
cut to at most k, an empty selection, a write to a view). For every other one it records the place, and the
condition under which the traced value holds; the conjunction of the conditions is the graph's output `valid`.
"""

from __future__ import annotations

import builtins
import contextvars
import dataclasses
import linecache
import math
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.upstream.compat.mmcv_operators import untraced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TORCH = Path(torch.__file__).parent
INSIDE = 'mmcv/ops/nms.py', 'exporting/traced/functions.py', 'exporting/traced/whole.py'
"""Ends of files whose rankings are parts of an NMS, or ours."""
PASSED = str(Path(__file__).parents[1]), *(str(Path(one.__file__).parent) for one in (torch, np)), '<'
"""Folders of files that stand between the code and PyTorch."""
NOT_ALL = re.compile(r'\s*(el)?if not [\w.\[\]]+\.all\(\)')
ANY = re.compile(r'\s*(el)?if (not )?[\w.\[\]]+\.any\(\)\s*:')
ASSERT = re.compile(r'\s*assert\b')
SHOWN = re.compile(r'\s*(print|warnings\.warn|\w*log\w*\.)')
SELECTING = {
    'aten::nonzero', 'aten::nonzero_numpy', 'aten::index', 'aten::masked_select', 'aten::unique',
    'aten::_unique2', 'aten::unique_dim', 'mm2onnx::batched_nms',
}  # fmt: skip
"""Operators whose results have a size that depends on values."""
COMPARED = {
    **dict.fromkeys(('__gt__', 'gt'), 'gt'), **dict.fromkeys(('__lt__', 'lt'), 'lt'),
    **dict.fromkeys(('__ge__', 'ge'), 'ge'), **dict.fromkeys(('__le__', 'le'), 'le'),
    **dict.fromkeys(('__eq__', 'eq'), 'eq'), **dict.fromkeys(('__ne__', 'ne'), 'ne'),
}  # fmt: skip
UNWRITTEN = {'requires_grad_', 'detach_', 'squeeze_', 'unsqueeze_', 't_', 'transpose_'}
"""Methods in place that write no values."""
SIZES = 'size', 'numel', 'nelement'
SIGNS = {
    'mul', '__mul__', '__rmul__', '__imul__', 'div', '__truediv__', '__itruediv__', 'pow', '__pow__',
    'sqrt', 'square', 'abs', 'neg', '__neg__', 'exp', 'log', 'sigmoid',
}  # fmt: skip
"""Functions that give dropped scores another sign."""
STEEP = 'exp', 'sigmoid', 'softmax', 'sqrt'
"""Functions from a head's outputs to sizes and scores. Their inputs are borders, as rounding grows there."""
EACH = 'each_'
"""Prefix of the name of an inner tensor with an axis of images."""
BORDERS = re.compile(
    rf'({EACH})?(topk|sort|argsort|threshold|equal|nms_boxes|nms_scores|rois|exp|sigmoid|softmax|sqrt)_\w+_\d+'
)
"""Names of tensors where rounding decides."""
DROPPED = torch.tensor(-1.0)
"""Score of a row that a selection would drop, in a graph of constant shapes; a factor leaves it below 0."""
NOT_EMPTY = dict(eq=False, ne=True, gt=True, ge=True, lt=False, le=False)
"""Comparison of a count with 0 (`ge`, `lt`: with 1) -> its result where something was selected."""


class Limit(int):
    """A limit of `test_cfg`: every traced size exceeds it, so that the branch that cuts is traced."""

    def __lt__(self, size: Any) -> Any:
        return int.__lt__(self, size) if isinstance(size, torch.Tensor) or size <= 0 else True

    def __deepcopy__(self, memo: Any) -> Limit:
        return self

    def __copy__(self) -> Limit:
        return self


@dataclasses.dataclass(frozen=True)
class Escape:
    """A fact of the example that the code reads in Python.

    Attributes:
        kind: 'value' is guarded by `valid`; 'empty' and 'assert' are decided by their meaning, 'shown' is
            printed.
        name: what reads it, such as `__bool__` or `tolist`.
        value: of the example.
        constant: whether it depends on sizes alone, of nothing that was selected.
    """

    kind: str
    name: str
    file: str
    line: int
    value: Any
    constant: bool = False

    @property
    def text(self) -> str:
        return linecache.getline(self.file, self.line).strip()


@dataclasses.dataclass(frozen=True)
class Caps:
    """Limits of boxes, which make all shapes constant.

    Attributes:
        candidates: boxes of the last NMS, best first.
        proposals: boxes of an NMS in front of regions; 0: there are no regions.
        wanted: most proposals, after which further boxes do not count; -1: no limit.
        results: most results of an image.
        sorted: most rows that a sort returns.
        plugin_classes: number of classes if TensorRT's plug-in is the last NMS, else 0.
    """

    candidates: int
    proposals: int
    wanted: int
    results: int
    sorted: int
    plugin_classes: int


_active: contextvars.ContextVar[Tracing | None] = contextvars.ContextVar('traced_mode', default=None)


def active() -> Tracing | None:
    """Return the mode of the trace that runs, or None outside of one."""
    return _active.get() if is_traced() else None


def is_traced() -> bool:
    return torch._C._get_tracing_state() is not None


def place() -> tuple[str, int]:
    """Return file and line of the code that called PyTorch."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not (file.startswith(PASSED) or '/unittest/' in file):
            return file, frame.f_lineno
        frame = frame.f_back
    return '', 0


def methods_outwards() -> list[tuple[Any, str]]:
    """Return object and name of each method that runs, innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        owner, name = frame.f_locals.get('self'), frame.f_code.co_name
        if hasattr(type(owner), name):  # a function inside of a method has the method's `self`
            found.append((owner, name))
        frame = frame.f_back
    return found


class BorderNames:
    """Names of the tensors where rounding decides, the same in a trace and in eager PyTorch."""

    def __init__(self, counts: Mapping[str, int] = types.MappingProxyType({})) -> None:
        self.counts = dict(counts)

    def name(self, kind: str) -> str:
        """Return the name of the next tensor of a kind in the calling function, or '' within an NMS."""
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith((str(TORCH), __file__, '<')):
            frame = frame.f_back
        if frame.f_code.co_filename.endswith(INSIDE) and not kind.startswith(('nms', 'rois')):
            return ''
        while frame.f_code.co_filename.startswith(PASSED):
            frame = frame.f_back
        return self.next_of(f'{kind}_{frame.f_code.co_name.strip("<>_")}')

    def next_of(self, title: str) -> str:
        self.counts[title] = self.counts.get(title, -1) + 1
        return f'{title}_{self.counts[title]}'


@dataclasses.dataclass
class Suppressed:
    """Boxes (n, 4), scores (n,) and labels (n,) of an NMS, before it suppresses any.

    Attributes:
        names: of the boxes and scores among the inner tensors.
        conditions, borders: of the code in front of it, see `Tracing`.
    """

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    names: tuple[str, str]
    conditions: tuple[torch.Tensor, ...] = ()
    borders: tuple[str, ...] = ()


class Tracing(TorchFunctionMode):
    """Keeps Python's decisions in the graph, or records them.

    Attributes:
        escapes: what left the tensors, in order.
        borders: name -> float tensor where rounding decides: inputs of rankings, thresholds and suppressions.
        suppressed: the last NMS.
        caps: limits of boxes in a graph of constant shapes: sizes are numbers of Python, a selection keeps
            all rows, and those that it would drop have a score below 0.
        regions: with `caps`, which regions are proposals (R,) bool; None before the first regions.
        entered: with `caps`, name of a counter -> boxes of an NMS ().
        left: file and line that reads computed values -> objects and names of its methods, innermost first.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        counts: Mapping[str, int] = types.MappingProxyType({}),
        caps: Caps | None = None,
    ) -> None:
        super().__init__()
        self.caps = caps
        self.regions: torch.Tensor | None = None
        self.entered: dict[str, torch.Tensor] = {}
        self._places: dict[int, tuple[torch.Tensor, torch.Tensor, int | None]] = {}
        self._scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._compared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.inputs = {torch._C._get_value_trace(tensor).unique() for tensor in inputs}
        self.escapes: list[Escape] = []
        self.conditions: list[torch.Tensor] = []
        self.borders: dict[str, torch.Tensor] = {}
        self.names = BorderNames(counts)
        self.suppressed: Suppressed | None = None
        self.left: dict[tuple[str, int], list[tuple[Any, str]]] = {}
        self._depends: dict[int, bool] = {}
        self._selected: dict[int, bool] = {}
        self._views: dict[int, tuple[torch.Tensor, torch.Tensor, Any]] = {}
        self._counts: dict[int, torch.Tensor] = {}
        self._emptiness: dict[int, tuple[torch.Tensor, bool]] = {}

    def __enter__(self) -> Tracing:
        self._token = _active.set(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _active.reset(self._token)

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_traced():
            return function(*args, **kwargs)
        name = getattr(function, '__name__', '')
        if getattr(function, '__self__', None) is torch.Tensor.data:
            return args[0].detach()  # a trace keeps the values of `.data`, without a warning
        if self.caps and (name in SIZES or getattr(function, '__self__', None) is torch.Tensor.shape):
            with untraced():
                return function(*args, **kwargs)
        rule = RULES.get(name)
        result = rule(self, function, name, args, kwargs) if rule else NotImplemented
        is_write = name.endswith('_') and not name.startswith('__') and name not in UNWRITTEN
        if result is NotImplemented and is_write and args and self._view_of(args[0]):
            result = self._write(function, args, kwargs)
        if result is NotImplemented:
            result = function(*args, **kwargs)
        if self.caps and name in SIGNS:
            result = self._dropped_again(args, result)
        self._remember(name, args, result)
        return result

    def _remember(self, name: str, args: Any, result: Any) -> None:
        """Remember views, counts and questions whether something is empty; with `caps` masks and places."""
        if self.caps:
            self._remember_places(name, args, result)
        if name == '__getitem__' and isinstance(result, torch.Tensor) and result._is_view():
            self._views[id(result)] = result, args[0], args[1]
        is_product = name in ('__mul__', 'mul', '__rmul__') and id(args[0]) in self._counts
        if name in ('__get__', 'size', 'numel', 'sum', 'count_nonzero') or is_product:
            for one in result if isinstance(result, tuple) else (result,):
                if isinstance(one, torch.Tensor) and one.dim() == 0:
                    self._counts[id(one)] = one
        if name in COMPARED and isinstance(result, torch.Tensor) and result.dim() == 0:
            kind, count, other = COMPARED[name], args[0], args[1]
            if self._counts.get(id(count)) is not count or count.is_floating_point():
                return
            with_zero, with_one = kind in ('eq', 'ne', 'gt', 'le'), kind in ('lt', 'ge')
            if type(other) is builtins.int and ((other == 0 and with_zero) or (other == 1 and with_one)):
                self._emptiness[id(result)] = result, NOT_EMPTY[kind]

    def _select(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Set one value of an empty mask in the example: the code behind it is traced as not empty."""
        if name == 'where' and len(args) + len(kwargs) > 1:
            return NotImplemented
        if self.caps:
            return self._all_rows(name, args, kwargs)
        masks = args[:1]
        if name in ('__getitem__', 'masked_select'):
            masks = args[1] if isinstance(args[1], tuple) else args[1:2]
        for mask in masks:
            if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.dim():
                with untraced():
                    if mask.numel() and not mask.any():
                        mask[(0,) * mask.dim()] = True
        return NotImplemented

    # constant shapes
    def _all_rows(self, name: str, args: Any, kwargs: Any) -> Any:
        tensor, *others = args
        if name in ('nonzero', 'where'):
            sizes = shape_of(tensor)
            places = unravelled(torch.arange(math.prod(sizes)), sizes)
            if kwargs.get('as_tuple', name == 'where'):
                for axis, column in enumerate(places):
                    self._places[id(column)] = column, tensor, axis
                return tuple(places)
            rows = torch.stack(places, 1)
            self._places[id(rows)] = rows, tensor, None
            return rows
        if name == 'masked_select':
            return self._kept(tensor, others[0])
        index, *rest = others[0] if isinstance(others[0], tuple) else others
        if not isinstance(index, torch.Tensor):
            masks = [isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in rest]
            if not any(masks):
                return NotImplemented
            kept = (slice(None) if is_mask else one for one, is_mask in zip(rest, masks, strict=True))
            return tensor[(index, *kept)]
        if places := self._places_of(tensor):
            columns = unravelled(index, shape_of(places[1]))
            return torch.stack(columns, 1) if places[2] is None else columns[places[2]]
        mask = index if index.dtype == torch.bool else None
        if known := self._places_of(index):
            mask = known[1]
            rest = rest[mask.dim() - 1 :]
        if mask is None or not mask.dim():
            return NotImplemented
        rows = self._kept(tensor, mask)
        return rows[(slice(None), *rest)] if rest else rows

    def _kept(self, tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return all rows; a score of a row that the mask drops is `DROPPED`."""
        rows, flat = tensor.flatten(0, mask.dim() - 1), mask.flatten()
        if tensor.dim() == mask.dim() and tensor.is_floating_point():
            scores = torch.where(flat, rows, DROPPED)
            self._scores[id(scores)] = scores, flat
            return scores
        _, compared = self._compared.get(id(mask), (None, None))
        view, base, index = self._views.get(id(compared), (None, None, None))
        if view is not None and view is compared and base is tensor and isinstance(index, tuple):
            columns = range(shape_of(tensor)[1])
            others = torch.tensor([column != columns[index[1]] for column in columns])
            return torch.where(flat[:, None] | others, rows, DROPPED)  # scores beside boxes
        return rows.clone()

    def _dropped_again(self, args: Any, result: torch.Tensor) -> torch.Tensor:
        """Return computed scores with `DROPPED` where an operand has it: the product of two is above 0."""
        for operand in args:
            scores, flat = self._scores.get(id(operand), (None, None))
            if scores is operand and shape_of(result) == shape_of(flat):
                result = torch.where(flat, result, DROPPED)
                self._scores[id(result)] = result, flat
        return result

    def _places_of(self, tensor: Any) -> tuple[torch.Tensor, torch.Tensor, int | None] | None:
        known = self._places.get(id(tensor))
        return known if known and known[0] is tensor else None

    def _remember_places(self, name: str, args: Any, result: Any) -> None:
        if name in COMPARED and isinstance(result, torch.Tensor) and isinstance(args[0], torch.Tensor):
            self._compared[id(result)] = result, args[0]
        places = self._places_of(args[0]) if args else None
        if not places or places[2] is not None:
            return
        axes = range(places[1].dim())
        if name == '__getitem__' and isinstance(args[1], tuple) and args[1][1:] and args[1][1] in axes:
            self._places[id(result)] = result, places[1], args[1][1]
        columns = result if isinstance(result, tuple) else (result,)
        if len(columns) == len(axes) and all(column.dim() == 1 for column in columns):
            for axis, column in enumerate(columns):
                self._places[id(column)] = column, places[1], axis

    def _sort(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        self._rank(function, name, args, kwargs)
        given = dict(zip(('dim', 'descending'), args[1:], strict=False), **kwargs)
        values, dim = args[0], given.get('dim', -1)
        if self.caps is None or shape_of(values)[dim] <= self.caps.sorted:
            return NotImplemented
        best = torch.topk(values, self.caps.sorted, dim, largest=given.get('descending', False))
        return best if name == 'sort' else best[1]

    # what the graph depends on
    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on values or sizes of the inputs, and not on weights alone."""
        todo, seen, known = [torch._C._get_value_trace(tensor)], set(), self._depends
        start = todo[0].unique()
        while todo:
            value = todo.pop()
            name = value.unique()  # debug names move to later values
            if name in seen or known.get(name) is False:
                continue
            seen.add(name)
            if known.get(name) or name in self.inputs:
                known[start] = True
                return True
            todo += value.node().inputs()
        known.update(dict.fromkeys(seen, False))
        return False

    def selected(self, tensor: torch.Tensor) -> bool:
        """Whether a size depends on values, and not on the sizes of the inputs alone."""
        todo, seen, known = [torch._C._get_value_trace(tensor)], set(), self._selected
        start = todo[0].unique()
        while todo:
            value = todo.pop()
            name = value.unique()
            if name in seen or known.get(name) is False:
                continue
            seen.add(name)
            node = value.node()
            if known.get(name) or node.kind() in SELECTING:
                known[start] = True
                return True
            sources = list(node.inputs())
            is_column = node.kind() == 'aten::size' and sources[1].toIValue() != 0
            if not is_column:  # rows are selected along the first axis
                todo += sources
        known.update(dict.fromkeys(seen, False))
        return False

    def of_sizes(self, tensor: torch.Tensor) -> bool:
        """Whether a number is computed from sizes of tensors alone."""
        todo, seen = [torch._C._get_value_trace(tensor)], set()
        while todo:
            value = todo.pop()
            node = value.node()
            if value.unique() in seen or node.kind() == 'aten::size':
                continue
            seen.add(value.unique())
            if value.unique() in self.inputs:
                return False
            todo += node.inputs()
        return True

    def number(self, value: Any, name: str) -> Any:
        """Return the example's value of a size that an operator needs as a number."""
        if not isinstance(value, torch.Tensor):
            return value
        with untraced():
            number = value.item()
        if self.depends(value):
            self.record('value', name, number, value == number, value)
        return number

    def fixed_size(self, tensor: torch.Tensor, dim: int, name: str) -> None:
        size = tensor.shape[dim]
        if isinstance(size, torch.Tensor) and not self.caps:
            self.number(size, name)

    # what leaves the tensors
    def record(
        self,
        kind: str,
        name: str,
        value: Any,
        holds: torch.Tensor | None,
        source: torch.Tensor | bool = False,
    ) -> None:
        file, line = place()
        text = linecache.getline(file, line)
        if kind == 'value':
            kind = 'shown' if SHOWN.match(text) else 'assert' if ASSERT.match(text) else kind
        constant = source
        if isinstance(source, torch.Tensor):
            constant = self.of_sizes(source) and not self.selected(source)
        self.escapes.append(Escape(kind, name, file, line, value, constant))
        if kind == 'value' and not constant:
            self.left.setdefault((file, line), methods_outwards())
        if kind == 'value' and holds is not None:
            self.conditions.append(holds.reshape(()).to(torch.bool))

    def valid(self, conditions: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return whether everything that the graph holds of the example is true of its inputs: () bool."""
        conditions = self.conditions if conditions is None else conditions
        return torch.stack([*conditions]).all() if conditions else torch.ones((), dtype=torch.bool)

    def suppress(self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep the inputs of an NMS."""
        conditions, borders = tuple(self.conditions), tuple(self.borders)
        names = self.border('nms_boxes', boxes), self.border('nms_scores', scores)
        self.suppressed = Suppressed((boxes, scores, labels), names, conditions, borders)

    def border(self, kind: str, tensor: torch.Tensor) -> str:
        name = self.names.name(kind) if tensor.is_floating_point() and tensor.dim() else ''
        values = [torch._C._get_value_trace(one).unique() for one in self.borders.values()]
        is_new = torch._C._get_value_trace(tensor).unique() not in values
        if name and is_new and self.depends(tensor):
            self.borders[name] = tensor
        return name

    def _to_python(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if not isinstance(tensor, torch.Tensor):
            return NotImplemented
        if name == '__len__':
            self.fixed_size(tensor, 0, name)
        if name == '__len__' or not self.depends(tensor):
            with untraced():
                return function(*args, **kwargs)
        line = linecache.getline(*place())
        if name == 'numpy':
            return tensor  # numpy's functions then read it by `__array__`
        if name == '__bool__' and NOT_ALL.match(line):
            return False  # rows are always selected
        if name == '__bool__' and ANY.match(line):
            self.record('empty', name, True, None)
            return True
        if name == '__bool__' and (known := self._emptiness.get(id(tensor))) and known[0] is tensor:
            self.record('empty', name, known[1], None)
            return known[1]
        if name == '__bool__' and self._counts.get(id(tensor)) is tensor and not tensor.is_floating_point():
            self.record('empty', name, True, None)
            return True
        with untraced():
            value = function(*args, **kwargs)
        if name in ('__bool__', 'is_nonzero'):
            flag = tensor.reshape(()).to(torch.bool)
            self.record('value', name, value, flag if value else ~flag, tensor)
            return value
        with untraced():
            example = tensor.detach().clone()
        shown = value if example.numel() < 9 else f'array {tuple(example.shape)}'
        holds = (tensor == example).all() if example.numel() else torch.ones((), dtype=torch.bool)
        self.record('value', name, shown, holds, tensor)
        return value

    def _compare(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Functions that return a Python bool of two tensors or of a tensor and a number."""
        if not any(isinstance(one, torch.Tensor) and self.depends(one) for one in args):
            return NotImplemented
        with untraced():
            value = function(*args, **kwargs)
        first, second = args[:2]
        if name == '__contains__':
            flag = (first == second).any()
        elif name == 'equal' and first.shape == second.shape:
            flag = (first == second).all()
        elif name == 'allclose':
            bars = dict(zip(('rtol', 'atol'), args[2:], strict=False), **kwargs)
            bar = bars.get('atol', 1e-8) + bars.get('rtol', 1e-5) * second.abs()
            flag = ((first - second).abs() <= bar).all()
        else:
            flag = torch.zeros((), dtype=torch.bool)
        self.record('value', name, value, flag if value else ~flag)
        return value

    # what stays in the graph
    def _compare_limit(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        size, limit = (*args, None)[:2]
        kind, count = compared_floats(name, args)
        for operand in args[:count]:
            self.border(kind, operand)
        if not isinstance(limit, Limit) or not isinstance(size, torch.Tensor) or size.dim():
            return NotImplemented
        return NotImplemented if size.is_floating_point() else COMPARED[name] in ('gt', 'ge')

    def _topk(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        given = dict(zip(('input', 'k', 'dim', 'largest', 'sorted'), args, strict=False), **kwargs)
        values, k = given['input'], given['k']
        size = values.shape[given.get('dim', -1)]
        if self.caps:
            given['k'] = builtins.min(builtins.int(k), shape_of(values)[given.get('dim', -1)])
        elif isinstance(size, torch.Tensor) and self.depends(size):
            given['k'] = torch.minimum(size, torch.as_tensor(k).to(size))
        self.border(name, values)
        return torch.topk(**given)

    def _rank(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor) and is_border(name, args[0]):
            self.border(name, args[0])
        return NotImplemented

    def _build(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """`new_tensor`, `torch.tensor`: a trace makes constants of them."""
        like, data = (args[0], args[1]) if name == 'new_tensor' else (None, args[0])
        if not has_tensor(data):
            return NotImplemented
        dtype = kwargs.get('dtype') or (like.dtype if like is not None else None)
        return stacked(data, dtype)

    def _view_of(self, tensor: Any) -> bool:
        return self._views.get(id(tensor), (None,))[0] is tensor

    def _write(self, function: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """Write to a view: TorchScript would lose it for the whole."""
        view = args[0]
        self._set(view, function(view.clone(), *args[1:], **kwargs))
        return view

    def _write_items(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if not self._view_of(args[0]):
            return NotImplemented
        written = args[0].clone()
        written[args[1]] = args[2]
        self._set(args[0], written)
        return None

    def _write_operator(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        return self._write(function, args, kwargs) if self._view_of(args[0]) else NotImplemented

    def _set(self, view: torch.Tensor, new: torch.Tensor) -> None:
        _, base, index = self._views[id(view)]
        if self._view_of(base):
            whole = base.clone()
            whole[index] = new
            self._set(base, whole)
        else:
            base[index] = new
        with untraced():
            view.copy_(new)
        torch._C._set_value_trace(view, torch._C._get_value_trace(new))

    def _reshape(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """`x.reshape(n, -1)` of n selected rows: ONNX cannot divide 0 elements by 0 rows."""
        shape = list(args[1]) if len(args) == 2 and isinstance(args[1], tuple | list) else list(args[1:])
        tensor = args[0]
        if -1 not in [size for size in shape[1:] if not isinstance(size, torch.Tensor)] or tensor.dim() < 2:
            return NotImplemented
        if not isinstance(shape[0], torch.Tensor) or not self.selected(shape[0]):
            return NotImplemented
        with untraced():
            rows, rest = builtins.int(shape[0]), [builtins.int(size) for size in shape[1:]]
            same, elements = rows == tensor.shape[0], tensor.numel()
        if same and len(rest) == 1:
            return function(tensor, shape[0], math.prod(tensor.shape[1:]))
        if rows:  # ONNX Runtime writes -1 for one computed size behind n
            rest[rest.index(-1)] = abs(elements // math.prod([rows, *rest]))
            holds = math.prod(tensor.shape) == shape[0] * math.prod(rest)
            for size, held in zip(shape[1:], rest, strict=True):
                if isinstance(size, torch.Tensor):
                    holds = holds & (size == held)
            self.record('value', 'reshape', rest, holds, True)
            return function(tensor, -1, *rest)
        return NotImplemented

    def _split(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        sizes = args[1] if len(args) > 1 else next(iter(kwargs.values()), None)
        is_one = isinstance(sizes, tuple | list) and len(sizes) == 1
        return (args[0],) if is_one else NotImplemented

    def _conv2d(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A convolution with computed 1x1 weights, as SOLOv2's: a matrix product."""
        given = dict(
            zip(('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'), args, strict=False)
        )
        given |= kwargs
        weight = given['weight']
        if tuple(map(builtins.int, weight.shape[2:])) != (1, 1) or not self.depends(weight):
            return NotImplemented
        is_plain = given.get('stride', 1) in (1, (1, 1)) and given.get('padding', 0) in (0, (0, 0))
        if given.get('bias') is not None or not is_plain or given.get('groups', 1) != 1:
            return NotImplemented
        image = given['input']
        return (weight.flatten(1) @ image.flatten(2)).unflatten(2, image.shape[2:])

    def _max_pool(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Maps without an axis of images, which PyTorch's exporter takes for maps with one."""
        if not args or args[0].dim() != 3:
            return NotImplemented
        pooled = function(args[0][None], *args[1:], **kwargs)
        return tuple(one[0] for one in pooled) if isinstance(pooled, tuple) else pooled[0]

    def _pool_to(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """`adaptive_avg_pool2d` to the size of other maps, as HTC's semantic features to that of regions."""
        sizes = args[1] if len(args) > 1 else kwargs['output_size']
        if not has_tensor(sizes):
            return NotImplemented
        sides = [self.number(args[0].shape[axis], name) for axis in (-2, -1)]
        sizes = [self.number(size, name) for size in sizes]
        if any(side % size for side, size in zip(sides, sizes, strict=True)):
            return NotImplemented
        return torch.nn.functional.avg_pool2d(args[0], (sides[0] // sizes[0], sides[1] // sizes[1]))

    def _layer_norm(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if 'normalized_shape' in kwargs:
            sizes = [self.number(size, name) for size in kwargs['normalized_shape']]
            return function(*args, **dict(kwargs, normalized_shape=sizes))
        sizes = [self.number(size, name) for size in args[1]]
        return function(args[0], sizes, *args[2:], **kwargs)

    def _unbind(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if isinstance(args[0], torch.Tensor) and args[0].dim():
            self.fixed_size(args[0], args[1] if len(args) > 1 else kwargs.get('dim', 0), name)
        return NotImplemented

    def _same(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        return args[0]  # a deep copy of a traced tensor would be a constant


Rule = 'Callable[[Tracing, Any, str, Any, Any], Any]'
TO_PYTHON = (
    '__bool__', '__int__', '__float__', '__index__', 'item', 'tolist', '__len__', 'numpy', '__array__',
    'is_nonzero', '__format__', '__complex__',
)  # fmt: skip
RULES: dict[str, Any] = {
    **dict.fromkeys(TO_PYTHON, Tracing._to_python),
    **dict.fromkeys(('equal', 'allclose', '__contains__'), Tracing._compare),
    **dict.fromkeys(COMPARED, Tracing._compare_limit),
    **dict.fromkeys(('new_tensor', 'tensor', 'as_tensor'), Tracing._build),
    **dict.fromkeys(('reshape', 'view'), Tracing._reshape),
    **dict.fromkeys(('split', 'split_with_sizes'), Tracing._split),
    **dict.fromkeys(('__iter__', 'unbind'), Tracing._unbind),
    **dict.fromkeys(('sort', 'argsort'), Tracing._sort),
    **dict.fromkeys(STEEP, Tracing._rank),
    **dict.fromkeys(
        [f'__i{name}__' for name in ('add', 'sub', 'mul', 'truediv', 'pow', 'and', 'or')],
        Tracing._write_operator,
    ),
    '__setitem__': Tracing._write_items,
    **dict.fromkeys(('__getitem__', 'masked_select', 'nonzero', 'where'), Tracing._select),
    'topk': Tracing._topk,
    'conv2d': Tracing._conv2d,
    **dict.fromkeys(('max_pool2d', 'max_pool2d_with_indices'), Tracing._max_pool),
    'adaptive_avg_pool2d': Tracing._pool_to,
    'layer_norm': Tracing._layer_norm,
    '__deepcopy__': Tracing._same,
}
"""Name of a function of PyTorch -> what the mode does in its place; NotImplemented runs the function."""


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    with untraced():
        return tuple(tensor.shape)


def unravelled(places: torch.Tensor, shape: Sequence[int]) -> list[torch.Tensor]:
    """Return the index on each axis of places in a flattened tensor."""
    columns = []
    for size in reversed(shape[1:]):
        rows = torch.div(places, size, rounding_mode='floor')
        columns.insert(0, places - rows * size)
        places = rows
    return [places, *columns]


def is_border(name: str, tensor: torch.Tensor) -> bool:
    """Whether an input is a border: not those of attention, and not maps of layers with a Swish."""
    return name not in ('sigmoid', 'softmax') or tensor.dim() <= 3


def compared_floats(name: str, args: Any) -> tuple[str, Any]:
    """Return the kind of border of a comparison, and how many of its operands are borders."""
    kind, (values, other) = COMPARED.get(name, ''), (*args, None, None)[:2]
    if not isinstance(values, torch.Tensor) or not values.is_floating_point() or not values.dim():
        return '', 0
    if kind in ('gt', 'ge', 'lt', 'le') and isinstance(other, float):
        return 'threshold', 1
    if kind in ('eq', 'ne') and isinstance(other, torch.Tensor) and other.is_floating_point() and other.dim():
        return 'equal', 2  # as in the suppression of points that are no maxima
    return '', 0


class Ranking(TorchFunctionMode):
    """Eager PyTorch with a trace's cuts: records the tensors where rounding decides, and replaces given ones.

    Attributes:
        given: name -> tensor of a file, used where the code's own tensor has the same shape.
        overlap: added to the IoU thresholds of NMS.
        slack: added to other thresholds.
        found: name -> the code's own tensor.
        suppressed: name of its boxes -> boxes (n, 4), scores (n,) and labels (n,) of an NMS.
        entered: of each NMS, whether it is in front of regions, its boxes, and a function from a limit of
            boxes to the number that it keeps of the best ones.
    """

    def __init__(self, given: Mapping[str, torch.Tensor], overlap: float = 0.0, slack: float = 0.0) -> None:
        super().__init__()
        self.given, self.overlap, self.slack = given, overlap, slack
        self.found: dict[str, torch.Tensor] = {}
        self.suppressed: dict[str, tuple[torch.Tensor, ...]] = {}
        self.entered: list[tuple[bool, int, Callable[[int], int]]] = []
        self.names = BorderNames()

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, '__name__', '')
        if name in ('topk', 'sort', 'argsort') and args and isinstance(args[0], torch.Tensor):
            return ranked_as_onnx(name, self.border(name, args[0]), args[1:], kwargs)
        if name in STEEP and args and isinstance(args[0], torch.Tensor) and is_border(name, args[0]):
            args = (self.border(name, args[0]), *args[1:])
        kind, count = compared_floats(name, args)
        args = (*(self.border(kind, operand) for operand in args[:count]), *args[count:])
        if self.slack and kind == 'threshold':
            args = (args[0], args[1] + self.slack)
        return function(*args, **kwargs)

    def border(self, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        name = self.names.name(kind) if tensor.is_floating_point() and tensor.dim() else ''
        if not name:
            return tensor
        given = self.given.get(name)
        while given is not None and tensor.numel() and not given.numel():
            name = self.names.next_of(name.rpartition('_')[0])  # a trace does not skip what is empty
            given = self.given.get(name)
        self.found[name] = tensor.detach().clone()
        if given is None or given.shape != tensor.shape:
            return tensor
        if kind == 'equal' and tensor.untyped_storage().size() == tensor.nbytes:
            return tensor.copy_(given)  # later code multiplies the same values by whether they are equal
        return given.to(tensor)


def ranked_as_onnx(name: str, values: torch.Tensor, args: Any, kwargs: Any) -> Any:
    """Sort or cut with equal values in the order of their places, as ONNX's TopK."""
    if name != 'topk':
        given = dict(zip(('dim', 'descending'), args, strict=False), **kwargs) | dict(stable=True)
        return getattr(torch, name)(values, **given)
    given = dict(k=0, dim=-1, largest=True) | dict(
        zip(('k', 'dim', 'largest', 'sorted'), args, strict=False), **kwargs
    )
    dim, count = given['dim'], values.shape[given['dim']]
    best = torch.sort(values, dim=dim, descending=given['largest'], stable=True)
    kept = (one.narrow(dim, 0, builtins.min(int(given['k']), count)) for one in best)
    return torch.return_types.topk(tuple(kept))


def has_tensor(data: Any) -> bool:
    return isinstance(data, torch.Tensor) or (isinstance(data, tuple | list) and any(map(has_tensor, data)))


def stacked(data: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """Return nested lists of numbers and tensors as one tensor that depends on them."""
    if isinstance(data, torch.Tensor):
        return data.to(dtype) if dtype else data
    if not isinstance(data, tuple | list):
        return torch.tensor(data, dtype=dtype)
    parts = [stacked(one, dtype) for one in data]
    if dtype is None:
        kind = torch.float32 if any(part.is_floating_point() for part in parts) else parts[0].dtype
        parts = [part.to(kind) for part in parts]
    return torch.stack(parts)


# builtins of the modules that are traced
def traced_len(value: Any) -> Any:
    if not is_traced():
        return builtins.len(value)
    if isinstance(value, torch.Tensor) and value.dim():
        return value.shape[0]
    method = getattr(type(value), '__len__', None)
    return method(value) if isinstance(method, types.FunctionType) else builtins.len(value)


def _extreme(builtin: Callable[..., Any], of_two: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*args: Any, **kwargs: Any) -> Any:
        has_tensors = any(isinstance(value, torch.Tensor) for value in args)
        scalars = all(
            isinstance(value, builtins.int | float) or (isinstance(value, torch.Tensor) and not value.dim())
            for value in args
        )
        if not is_traced() or kwargs or len(args) < 2 or not has_tensors or not scalars:
            return builtin(*args, **kwargs)
        result = args[0]
        for other in args[1:]:
            pair = [
                value if isinstance(value, torch.Tensor) else torch.tensor(value) for value in (result, other)
            ]
            kind = torch.promote_types(pair[0].dtype, pair[1].dtype)
            result = of_two(pair[0].to(kind), pair[1].to(kind))
        return result

    return extreme


class _Int(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, builtins.int)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, builtins.int)

    def __call__(cls, value: Any = 0, *args: Any) -> Any:
        if isinstance(value, torch.Tensor) and is_traced() and value.dim() == 0:
            return value.to(torch.int64)
        return builtins.int(value, *args)


class traced_int(builtins.int, metaclass=_Int):
    """`int` that keeps a traced tensor."""


SHADOWS = dict(
    int=traced_int, len=traced_len, min=_extreme(min, torch.minimum), max=_extreme(max, torch.maximum)
)
"""Builtins of the traced modules -> functions that keep tensors."""
