"""One trace of a module by `torch.jit.trace`, observed.

While a module is traced, sizes are tensors too. The tracer warns of each number, bool or array that Python
takes out of a tensor; the graph so far tells on which inputs and sizes the tensor depends.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from mmdeploy_ext.bench.lint.sites import Site, caller, calling_frame, site_of, site_of_trace, use_at
from mmdeploy_ext.exporting.export import patched_libraries
from mmdeploy_ext.upstream.compat.import_hook import patched

RANGE = re.compile(r'^(.+\.py)\((\d+)\): (\S+)$', re.M)
"""A frame in the source range of a traced node: file, line, function."""
SHAPE_ONLY = {
    f'aten::{name}'
    for name in (
        'zeros_like', 'ones_like', 'full_like', 'empty_like', 'rand_like', 'randn_like', 'new_zeros',
        'new_ones', 'new_full', 'new_empty',
    )
}  # fmt: skip
"""Nodes that only read the shape of their first input."""
SIZES = ('aten::size', 'aten::len', 'aten::numel')


@dataclasses.dataclass(frozen=True)
class Event:
    """One rule met at one line, once.

    Attributes:
        site: None if the event concerns the module or an input as a whole.
        sizes: sizes that the event depends on, or None. Equal sizes in a run with other inputs are fixed.
    """

    rule: str
    site: Site | None
    detail: str
    sizes: tuple[int, ...] | None = None


def leaves(value: Any) -> Iterator[Any]:
    """Yield the leaves of nested lists, tuples and dicts in order."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def replaced(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Apply `change` to each tensor in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*(replaced(item, change) for item in value))
    return type(value)(replaced(item, change) for item in value) if type(value) in (list, tuple) else value


def copies(value: Any) -> Any:
    return replaced(value, lambda tensor: tensor.detach().clone())


def copy_of(module: torch.nn.Module) -> torch.nn.Module:
    """Deep copy of a module, or the module itself if PyTorch cannot copy it."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError, pickle.PickleError):
        return module  # non-leaf tensors, locks, functions of torch.jit.script


class Flat(torch.nn.Module):
    """Takes and gives flat tensors in place of a module's nested arguments and outputs."""

    def __init__(self, module: torch.nn.Module, args: Sequence[Any], observer: Observer) -> None:
        super().__init__()
        self.module = module
        self.call = lambda tensors: self._call(list(args), tensors, observer)

    def _call(self, args: list[Any], tensors: tuple[torch.Tensor, ...], observer: Observer) -> Any:
        given = iter(tensors)
        observer.begin(tensors)
        outputs = self.module(*replaced(args, lambda _: next(given)))
        return tuple(tensors_in(outputs)) or torch.zeros(1)

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.call(tensors)


class Observer(TorchFunctionMode):
    """Sees every call of torch while a module is traced.

    Attributes:
        names: names of the input tensors.
        events: in their order.
        traced: the traced module, of flat tensors; None before the end of `trace`.
        graph: its graph without dead nodes.
        error: the error that ended the trace.
        has_data: `.data` was read or written.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names
        self.events: list[Event] = []
        self.traced: Any = None
        self.graph: torch._C.Graph | None = None
        self.error: Exception | None = None
        self.has_data = False
        self._inputs: dict[int, int] = {}  # value of the graph -> number of the input
        self._writes: dict[int, list[torch._C.Value]] = {}  # value -> values written into its tensor
        self._views = WeakIdKeyDictionary()  # view -> whether it is one indexing of a whole tensor, its line
        self._warnings: list[warnings.WarningMessage] = []
        self._state = {
            id(tensor): name for name, value in attributes_of(module) for tensor in tensors_in(value)
        }

    def trace(self, inputs: Sequence[Any], exporting: bool) -> None:
        """Trace the module; `error` keeps an error of its code."""
        state = torch.onnx.is_in_onnx_export
        is_exporting = (lambda: True) if exporting else state
        flat = Flat(self.module, inputs, self)
        flat.train(self.module.training)
        with (
            warnings.catch_warnings(record=True) as self._warnings,
            patched(torch.onnx, is_in_onnx_export=is_exporting),
            patched_libraries(),
            torch.no_grad(),
            self._watched_attributes(),
        ):
            warnings.simplefilter('always')
            try:
                with self:
                    traced = torch.jit.trace(flat, tuple(tensors_in(inputs)), check_trace=False, strict=False)
            except Exception as error:
                self.error = error
                return
        self.traced, self.graph = traced, traced.inlined_graph
        for node in self.graph.nodes():
            if _draws(node):
                site = site_of_trace(RANGE.findall(node.sourceRange()))
                self.add('random', f'{node.kind().removeprefix("aten::")} draws numbers', site)
        torch._C._jit_pass_dce(self.graph)

    def begin(self, tensors: Sequence[torch.Tensor]) -> None:
        self._inputs = {_value(tensor).unique(): index for index, tensor in enumerate(tensors)}
        self._warnings.clear()

    def add(self, rule: str, detail: str, site: Site | None, sizes: tuple[int, ...] | None = None) -> None:
        self.events.append(Event(rule, site, detail, sizes))

    def depends(self, *tensors: torch.Tensor) -> tuple[list[int], tuple[int, ...]]:
        """Numbers of the inputs, and the sizes, on which tensors depend."""
        inputs, sizes, seen = set(), [], set()
        stack = [value for value in map(_value, tensors) if value is not None]
        while stack:
            value = stack.pop()
            if value.unique() in seen:
                continue
            seen.add(value.unique())
            stack += self._writes.get(value.unique(), [])
            node = value.node()
            if value.unique() in self._inputs:
                inputs.add(self._inputs[value.unique()])
            elif node.kind() in SIZES:
                sizes += _sizes(node)
            else:
                stack += list(node.inputs())[node.kind() in SHAPE_ONLY :]
        return sorted(inputs), tuple(sizes)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch._C._get_tracing_state() is None or not self._inputs:
            return result
        name, arguments = _name(func), [*tensors_in((args, kwargs or {}))]
        if name == '__index__':  # the tracer does not warn of `range(size)`
            self._convert('Converting a tensor to a Python index', arguments, result)
        while self._warnings:
            message = str(self._warnings.pop(0).message)
            if not (message.startswith('torch.') and isinstance(args[:1] and args[0], torch.Tensor)):
                self._convert(message, arguments, result)  # `torch.as_tensor(t)` is a tensor as it was
        if name in ('data.__get__', 'data.__set__'):
            self.has_data = True
            if inputs := self.depends(*arguments)[0]:
                self.add('tensor-data', f'.data of a tensor that depends on {self._text(inputs)}', caller())
        for target in _written(name, args, kwargs or {}):
            self._write(name, target, arguments)
        for view in tensors_in(result):
            # an in-place call returns its argument; the base of a linear layer's result is torch's own
            bases = [base for part in arguments if part is not view for base in (part, part._base)]
            if view._base is not None and any(view._base is base for base in bases):
                is_indexing = name in ('__getitem__', 'select') and view._base is args[0]
                self._views[view] = is_indexing, caller()
        return result

    def _convert(self, message: str, arguments: list[torch.Tensor], result: Any) -> None:
        """Add the event of a warning of the tracer."""
        frame = calling_frame()
        if frame is None or not arguments:
            return
        inputs, sizes = self.depends(*arguments)
        use = use_at(frame)
        if message.startswith(('Using len', 'Iterating')):
            if use == ('unpack' if message.startswith('Iterating') else 'guard') or not arguments[0].dim():
                return
            kind = 'in-loop' if message.startswith('Iterating') or use == 'loop' else 'to-python'
            kind = 'in-branch' if use == 'branch' else kind
            rows = arguments[0].shape[0] if arguments[0].dim() else 0
            with torch._C.DisableTorchFunction():
                rows = int(rows)
            self._warnings.clear()  # of this line's own conversion
            verb = 'a loop over' if message.startswith('Iterating') else 'len() of'
            self.add(f'size-{kind}', f'{verb} a tensor of {rows} rows', site_of(frame), (rows,))
            return
        what = re.search(r'^Converting a tensor to a (?:Python )?(\w+)', message)
        if what is None and not message.startswith('torch.'):  # 'torch.tensor results are registered ...'
            return
        to = what[1] if what else 'tensor'
        if inputs:
            decides = to == 'boolean' or use in ('branch', 'guard', 'loop')
            rule = 'value-in-branch' if decides else 'value-to-python'
            shown = f', {result:.6g},' if isinstance(result, int | float) else ''
            self.add(rule, f'a {to}{shown} of {self._text(inputs)}', site_of(frame))
        elif sizes and use != 'guard':
            rule = dict(branch='size-in-branch', loop='size-in-loop').get(use, 'size-to-python')
            self.add(rule, f'a {to} of a size {"x".join(map(str, sizes))}', site_of(frame), sizes)

    def _write(self, name: str, target: torch.Tensor, values: list[torch.Tensor]) -> None:
        """Note a write into a tensor; add events for state and views."""
        base = target if target._base is None else target._base
        site = caller()
        if id(base) in self._state and site is not None:
            self.add('state-written', f'{name.strip("_")} into {self._state[id(base)]!r}', site)
        if target in self._views and self.depends(target, *values)[0] and site is not None:
            is_indexing, view_site = self._views[target]
            is_call = name.endswith('_') and name != '__setitem__'  # no `t[0][1] = v`, `out=t[0]`
            if not (is_indexing and is_call and view_site == site):
                self.add('write-to-view', f'{name.strip("_")} into a view', site)
        sources = [value for value in map(_value, values) if value is not None]
        for tensor in (target, base):
            if (value := _value(tensor)) is not None:
                self._writes.setdefault(value.unique(), []).extend(sources)

    def _text(self, inputs: Sequence[int]) -> str:
        return (
            f'input{"s" if len(inputs) > 1 else ""} {", ".join(repr(self.names[index]) for index in inputs)}'
        )

    @contextlib.contextmanager
    def _watched_attributes(self) -> Iterator[None]:
        """Add an event where `forward` sets an attribute to tensors, or a number to another number."""
        paths = {id(part): path for path, part in self.module.named_modules()}
        original = torch.nn.Module.__setattr__

        def watched(module: torch.nn.Module, name: str, value: Any) -> None:
            old = module.__dict__.get(name)
            are_numbers = name != 'training' and all(
                type(each) in (int, float, bool) for each in (old, value)
            )
            tensors = list(tensors_in(value))
            is_counter = are_numbers and old != value
            if id(module) in paths and self._inputs and (tensors or is_counter):
                site, full_name = caller(), f'{paths[id(module)]}.{name}'.lstrip('.')
                inputs, sizes = self.depends(*tensors)
                is_size = bool(sizes) and not inputs  # a size that is kept is no memory
                if site is not None and not is_size:
                    self.add('state-written', f'attribute {full_name!r} is set', site)
            original(module, name, value)

        with patched(torch.nn.Module, __setattr__=watched):
            yield


def attributes_of(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield 'module.attribute' and value of all attributes, parameters and buffers."""
    for path, part in module.named_modules():
        values = {**part.__dict__, **part._parameters, **part._buffers}
        for name, value in values.items():
            if name not in ('_buffers', '_parameters', '_modules') and 'hooks' not in name:
                yield f'{path}.{name}'.lstrip('.'), value


def _name(func: Callable[..., Any]) -> str:
    """'add_', '__setitem__', 'data.__get__'."""
    func = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    full = resolve_name(func) or getattr(func, '__name__', '')
    parts = full.rpartition('::')[2].split('.')
    return '.'.join(parts[-2:]) if parts[-1] in ('__get__', '__set__') else parts[-1]


def _value(tensor: torch.Tensor) -> torch._C.Value | None:
    """Value of a tensor in the graph so far."""
    try:
        return torch._C._get_value_trace(tensor)
    except RuntimeError:  # a constant that requires a gradient
        return None


def _sizes(node: torch._C.Node) -> list[int]:
    shape = next(node.inputs()).type().sizes() or []
    if node.kind() != 'aten::size':
        return list(shape)
    axis = list(node.inputs())[1].toIValue()
    return [shape[axis]] if isinstance(axis, int) and -len(shape) <= axis < len(shape) else list(shape)


def _draws(node: torch._C.Node) -> bool:
    """Whether a node draws random numbers."""
    namespace, _, name = node.kind().partition('::')
    packet = getattr(torch.ops.aten, name, None) if namespace == 'aten' else None
    if packet is None:
        return False
    tags = [tag for overload in packet.overloads() for tag in getattr(packet, overload).tags]
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
    values = {key: value.toIValue() for key, value in zip(names, node.inputs(), strict=False)}
    is_off = values.get('train') is False or values.get('training') is False
    return not (is_off or values.get('p') == 0 or values.get('dropout_p') == 0)


def _written(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    in_place = name in ('__setitem__', '__iand__', '__ior__', '__ixor__', '__ipow__') or (
        name.endswith('_') and not name.endswith('__')
    )
    first = args[0] if args else kwargs.get('input')
    return [*tensors_in(([first] if in_place or kwargs.get('inplace') is True else [], kwargs.get('out')))]
