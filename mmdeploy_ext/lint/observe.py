"""Run a module once and see every call of torch that it makes, with what each tensor depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.lint.nested import leaves, tensors_in, without_sizes
from mmdeploy_ext.lint.record import Origins, Recorder, mark_size, origins_of
from mmdeploy_ext.lint.sites import Site, caller

SHAPE_ONLY = {
    'zeros_like', 'ones_like', 'full_like', 'empty_like', 'rand_like', 'randn_like', 'randint_like',
    'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'dim', 'size', 'numel',
    'stride', 'ndimension', 'nelement', 'is_floating_point', 'element_size', 'is_contiguous',
    'get_device', 'data_ptr',
}  # fmt: skip
"""Functions of torch whose result does not depend on the values of the tensor that they are called on."""

VALUES_FROM_SIZES = {
    'arange', 'linspace', 'range', 'tensor', 'as_tensor', 'full', 'full_like', 'new_full', 'new_tensor',
    'scalar_tensor', 'add', 'sub', 'rsub', 'mul', 'div', 'true_divide', 'floor_divide', 'remainder', 'pow',
    'clamp', 'add_', 'sub_', 'mul_', 'div_', 'clamp_', 'fill_', '__rsub__', '__rdiv__', '__rpow__',
    '__setitem__',
}  # fmt: skip
"""Functions of torch that put a number among their arguments into the values of their result."""

COUNTED_BY_VALUES = {
    'nonzero', 'argwhere', 'masked_select', 'unique', 'unique_consecutive', 'bincount', 'nms', 'batched_nms',
    'repeat_interleave', 'to_sparse', 'to_sparse_coo', 'to_sparse_csr', 'to_sparse_csc', 'coalesce',
    '_pack_padded_sequence',
}  # fmt: skip
"""Functions of torch whose result has as many elements as the values of their arguments say."""
SIZE_ARGUMENTS = {
    **dict.fromkeys((
        'arange', 'range', 'linspace', 'logspace', 'eye', 'zeros', 'ones', 'empty', 'rand', 'randn',
        'randint', 'randperm', 'tril_indices', 'triu_indices',
    ), slice(0, None)),
    **dict.fromkeys((
        'new_zeros', 'new_ones', 'new_empty', 'narrow', 'repeat', 'tile', 'expand', 'broadcast_to', 'view',
        'reshape', 'unflatten', 'unfold', 'as_strided', 'resize_', 'split', 'split_with_sizes',
        'tensor_split', 'chunk', 'interpolate', 'upsample', 'adaptive_avg_pool1d', 'adaptive_avg_pool2d',
        'adaptive_avg_pool3d', 'adaptive_max_pool1d', 'adaptive_max_pool2d', 'adaptive_max_pool3d',
    ), slice(1, None)),
    'full': slice(0, 1),
    **dict.fromkeys(('new_full', 'pad', 'topk'), slice(1, 2)),
}  # fmt: skip
"""Function of torch that takes sizes of its result -> the positions of these, where tensors may be, too."""
NO_SIZES = {'input', 'value', 'fill_value'}
"""Names of arguments of these functions that give no size."""
TENSORS = (torch.Tensor, torch.nn.Parameter)
"""Types of the tensors that are looked for among all objects, without other subclasses."""
RAISES = {
    'inverse', 'one_hot', 'embedding', 'gather', 'index_select', 'take', 'take_along_dim', 'scatter',
    'scatter_', 'scatter_add', 'index_add', 'index_copy', 'index_put', '__getitem__', '__setitem__',
    '_assert', 'multinomial', 'bernoulli', 'normal', 'cdist', 'bincount', 'repeat_interleave',
}  # fmt: skip
"""Functions of torch that raise an exception for some values; so do those of linear algebra."""
IN_PLACE_OPERATORS = {'__iand__', '__ior__', '__ixor__', '__ilshift__', '__irshift__', '__ipow__'}
"""Functions of `&=`, `|=`, `^=`, `<<=`, `>>=` and `**=`; that of `+=` is `add_`, and so on."""
REGIONS = 1 << 62
"""Bit of `Mark.counted` of features of regions: PyTorch has a row for each region that it finds."""
POOLING = {'level_regions', 'constant_level_regions'}
"""Operators of `exporting/ops/roi_align.py`, which pool features of regions."""
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""Types of operators in `torch.ops`, those that a user has registered among them."""
OF_ALL_SIZES = {'numel', 'nelement', 'stride', 'nbytes.__get__'}
"""Functions of torch that give numbers which follow from all sizes of a tensor."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a tensor depends on.

    Attributes:
        inputs: bit i is set if its values depend on those of input i.
        origins: the sizes, of shapes that were read, from which its values were computed.
        counted: bit i is set if its sizes depend on the values of input i.
    """

    inputs: int = 0
    origins: Origins = frozenset()
    counted: int = 0

    def __or__(self, other: Mark) -> Mark:
        """Return what depends on both."""
        if other is self or other is NOTHING:
            return self
        if self is NOTHING:
            return other
        return Mark(self.inputs | other.inputs, self.origins | other.origins, self.counted | other.counted)


NOTHING = Mark()
"""The mark of a tensor that depends on no input and no size."""


class Marks:
    """The marks of all live tensors of a run.

    Attributes:
        of_unknown: the mark of tensors without one, which code that nobody sees has made: a scripted
            function, a compiled operator, another thread. `NOTHING` unless every choice counts.
        constants: ids of tensors that are older than the run, inputs among them; empty unless every choice
            counts.
    """

    def __init__(self) -> None:
        self._of = WeakIdKeyDictionary()
        self.of_unknown = NOTHING
        self.constants: set[int] = set()

    def put(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Set the mark of a tensor, in place of an earlier one; that of its base stays."""
        self._of[tensor] = mark

    def of(self, tensor: torch.Tensor) -> Mark:
        """Return the mark of a tensor: its own, together with that of the tensor of which it is a view.

        Without one of its own it has `NOTHING` if it is older than the run (`constants`), else `of_unknown`.
        """
        mark = self._of.get(tensor)
        if mark is None:
            mark = NOTHING if id(tensor) in self.constants else self.of_unknown
        base = tensor._base
        return mark if base is None else mark | self._of.get(base, NOTHING)

    def of_all(self, values: Any) -> Mark:
        """Return the marks of all tensors in nested lists, tuples and dicts as one; `NOTHING` without any."""
        mark = NOTHING
        for tensor in tensors_in(values):
            mark |= self.of(tensor)
        return mark

    def add(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Add a mark to that of a tensor that was written in place, and of the one of which it is a view."""
        self.put(tensor, self.of(tensor) | mark)
        if tensor._base is not None:
            self.put(tensor._base, self._of.get(tensor._base, NOTHING) | mark)


@dataclasses.dataclass
class Call:
    """One call of torch.

    Attributes:
        name: name of the function without its module: 'item', '__setitem__', 'data.__get__', 'topk'; or
            'Function.apply', whose first argument is the class of the `torch.autograd.Function`.
        args, kwargs: its arguments; sizes among them are marked.
        result: value that it returned.
        mark: what its arguments depend on.
        observer: observer that saw it.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    mark: Mark
    observer: Observer

    @property
    def written(self) -> list[torch.Tensor]:
        """The tensors that it writes into: `out`, and its first argument if `in_place` or `inplace=True`."""
        targets = [self.argument(0, 'input')] if self.in_place or self.kwargs.get('inplace') is True else []
        return [*tensors_in((targets, self.kwargs.get('out')))]

    @property
    def in_place(self) -> bool:
        """Whether it writes into its first argument, by its name; `inplace=True` and `out=` do not count."""
        if self.name.endswith('__'):
            return self.name == '__setitem__' or self.name in IN_PLACE_OPERATORS
        return self.name.endswith('_')

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return the argument of a position or name, however it was passed; `default` if it was not."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def add(self, rule: str, detail: str, through_torch: bool = False, sizes: bool = False) -> None:
        """Add an event at the line outside of torch that made the call, of the user's code or of a library.

        Without such a line, or if torch made the call for itself, none is added.

        Args:
            rule: id of the rule.
            detail: text on what was done there, for the report.
            through_torch: also add it if torch made the call for itself, at the line that led there.
            sizes: the event counts only if one of the sizes that its arguments depend on differs between two
                runs with other inputs.
        """
        if (site := caller(through_torch)) is not None:
            self.observer.recorder.add(rule, detail, site, self.mark.origins if sizes else None)


@functools.lru_cache(maxsize=4096)
def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function of torch without its module and overload, see `Call.name`."""
    if isinstance(func, torch._ops.OpOverload):
        func = func.overloadpacket
    full = resolve_name(func) or getattr(func, '__name__', '')
    parts = full.rpartition('::')[2].split('.')
    if parts[-1] in ('__get__', '__set__', '__delete__'):
        return '.'.join(parts[-2:])
    return 'grid_sample' if parts[-1] == 'grid_sampler' else parts[-1]


class Observer(TorchFunctionMode):
    """Sees every call, sets the marks of its results and calls the watches.

    Of calls that read sizes, `shape`, `size()` and those of `OF_ALL_SIZES`, the results are marked sizes, and
    no watch is called; torch's own calls of these get plain numbers.

    Args:
        inputs: the tensors whose values may change later: bit 0 of the marks is the first.
        module: the module that runs; its parameters and buffers are state.
        watches: each is called with every other call of torch.
        every_choice: whether also what may be a choice by values or sizes is an event, see `Recorder`.

    Attributes:
        recorder: the events and sizes of the run.
        marks: what each tensor of the run depends on.
        parts: view -> how and on which line (`Site.text`) it was made, for views that are one indexing of a
            whole tensor by numbers ('select') or also by slices ('slice'), see `watches.parts`.
        hidden: tensors inside of torch of which a result is a view, such as that of a linear layer: no code
            outside of torch has them.
        squeezed: tensors whose number of axes follows from values, see `watches.ranks`.
        sized: numbers of the inputs whose sizes a line outside of torch read.
        is_in_function: whether a function of autograd runs, which has its own form in a graph.
        state: id -> name of the module's parameters and buffers.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        module: torch.nn.Module,
        watches: Sequence[Callable[[Call], None]],
        every_choice: bool = False,
    ) -> None:
        super().__init__()
        self.recorder = Recorder(every_choice)
        self.marks = Marks()
        self.inputs = list(inputs)
        self.watches = watches
        self.parts = WeakIdKeyDictionary()
        self.hidden = WeakIdKeyDictionary()
        self.squeezed = WeakIdKeyDictionary()
        self.sized: set[int] = set()
        self.is_in_function = False
        state = (*module.named_buffers(), *module.named_parameters())
        self.state = {id(tensor): name for name, tensor in state}
        for index, tensor in enumerate(inputs):
            self.marks.put(tensor, Mark(1 << index))
        if every_choice:
            self.marks.of_unknown = Mark((1 << len(self.inputs)) - 1, counted=REGIONS)
            # kept, so that no other has the same id
            self._constants = [value for value in gc.get_objects() if type(value) in TENSORS]
            self.marks.constants = {*map(id, self._constants), *self.state}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one call with plain sizes, and `see` it; calls that read sizes return marked ones."""
        kwargs = kwargs or {}
        name = name_of(func)
        if name in ('shape.__get__', 'size') or name in OF_ALL_SIZES:
            return self._sizes(name, func, args, kwargs)
        mark = self.marks.of_all((args, kwargs))
        if name in VALUES_FROM_SIZES:
            mark |= Mark(0, origins_of(*leaves((args, kwargs))))
        if self.recorder.every_choice:
            self._note_attempt(name, mark)
        result = func(*without_sizes(args), **without_sizes(kwargs))
        if isinstance(func, OPERATORS):
            self.note_numbers(f'operator {name}', mark, result)
        return self.see(Call(name, args, kwargs, result, mark, self))

    def note_numbers(self, title: str, mark: Mark, result: Any) -> None:
        """Add an event if compiled code gave numbers, truths or texts of tensors that depend on inputs.

        None is added unless every choice counts. `title` is what gave them, in words; `mark` is that of its
        arguments, `result` what it returned.
        """
        plain = [leaf for leaf in leaves(result) if isinstance(leaf, bool | int | float | complex | str)]
        if not (self.recorder.every_choice and mark.inputs and plain):
            return
        if (site := caller(through_torch=True)) is not None:  # `Module.__call__` calls a scripted method
            self.recorder.add('value-to-python', f'{title} gave {plain[0]}', site)

    def _note_attempt(self, name: str, mark: Mark) -> None:
        """Add an event for a call in a `try` that goes on after its exception: values or sizes raise it."""
        if not mark.inputs:
            return
        site = caller(through_torch=True)
        if site is not None and site.caught:
            by_values = mark.counted & ~REGIONS or name in RAISES or name.startswith(('linalg_', 'cholesky'))
            rule = 'value-in-branch' if by_values else 'size-in-branch'
            self.recorder.add(rule, f'{name} may raise an exception that is caught', site)

    def see(self, call: Call) -> Any:
        """Show a call to the watches, mark its results, and return `call.result`."""
        for watch in self.watches:
            watch(call)
        self._mark_results(call)
        return call.result

    def _sizes(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return a shape whose numbers are watched, but plain numbers to torch's own code."""
        result = func(*without_sizes(args), **kwargs)
        site = caller()
        if site is None or not isinstance(result, int | tuple):
            return result
        tensor = args[0] if args else kwargs['input']
        shape = tuple(tensor.shape)
        origins = self.read_sizes(site, tensor)
        if site.waiting == 'counted':
            self.recorder.add(
                'size-in-loop', f'a loop over a size of {shape}', site, frozenset().union(*origins)
            )
        if name in OF_ALL_SIZES:
            return mark_size(result, frozenset().union(*origins), self.recorder)
        if isinstance(result, int):
            axis = without_sizes(args[1] if len(args) > 1 else kwargs['dim'])
            return mark_size(result, origins[axis], self.recorder)
        return torch.Size(
            mark_size(size, origin, self.recorder) for size, origin in zip(result, origins, strict=True)
        )

    def read_sizes(self, site: Site, tensor: torch.Tensor) -> list[Origins]:
        """Note that a line read the sizes of a tensor; return origins, see `Recorder.read_sizes`."""
        self.sized |= {index for index, entry in enumerate(self.inputs) if entry is tensor}
        origins = self.recorder.read_sizes(site, tuple(tensor.shape))
        counted = self.marks.of(tensor).counted if self.recorder.every_choice else 0
        if counted & ~REGIONS:
            self.recorder.of_values.update(*origins)
        elif counted and origins:
            self.recorder.of_regions |= origins[0]
        return origins

    def _mark_results(self, call: Call) -> None:
        """Give the results the marks of the arguments."""
        mark = call.mark
        if call.name in SHAPE_ONLY:
            others = {name: value for name, value in call.kwargs.items() if name != 'input'}
            mark = self.marks.of_all((call.args[1:], others))
            if call.name in VALUES_FROM_SIZES:
                mark |= Mark(0, call.mark.origins)
            mark |= Mark(counted=call.mark.counted)
        if self.recorder.every_choice:
            is_pooling_of_mmcv = call.name == 'Function.apply' and 'roi' in call.args[0].__name__.lower()
            if is_pooling_of_mmcv or call.name in POOLING:
                mark |= Mark(counted=REGIONS)
            elif _counts_by_values(call):
                mark |= Mark(counted=call.mark.inputs)
            else:
                mark |= Mark(counted=self.marks.of_all(_size_arguments(call)).inputs)
        target = call.args[0] if call.in_place and call.args else None
        if isinstance(target, torch.Tensor):
            self.marks.add(target, mark)
        for tensor in tensors_in(call.result):
            if tensor is not target:
                self.marks.put(tensor, mark)
        for tensor in tensors_in(call.kwargs.get('out')):
            self.marks.add(tensor, mark)


def _counts_by_values(call: Call) -> bool:
    """Return whether the sizes of a call's result follow from values of its arguments."""
    if call.name in COUNTED_BY_VALUES:
        return True
    if call.name == 'where':
        return len(call.args) + len(call.kwargs) == 1
    if call.name == 'Function.apply':  # mmcv's suppression
        return 'nms' in call.args[0].__name__.lower()
    if call.name == 'one_hot':
        return call.argument(1, 'num_classes', default=-1) == -1
    masks = tensors_in(call.args[1:2]) if call.name == '__getitem__' else ()
    return any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)


def _size_arguments(call: Call) -> list[Any]:
    """Return the arguments of a call that give sizes of its result: `torch.zeros(n)`, `t[:n]`."""
    if call.name == '__getitem__':
        indices = call.args[1:2]
        entries = indices[0] if indices and isinstance(indices[0], tuple) else indices
        return [entry for entry in entries if isinstance(entry, slice)]
    if call.name not in SIZE_ARGUMENTS:
        return []
    others = [value for name, value in call.kwargs.items() if name not in NO_SIZES]
    return [*call.args[SIZE_ARGUMENTS[call.name]], *others]


@contextlib.contextmanager
def as_exporting() -> Iterator[None]:
    """Pretend that an export is running, so that the forms made for exports run.

    Two targets, `torch.onnx.is_in_onnx_export` and `torch.jit.is_tracing`, restored on exit (torch 2.13).
    """
    with patched(torch.onnx, is_in_onnx_export=lambda: True), patched(torch.jit, is_tracing=lambda: True):
        yield


@contextlib.contextmanager
def arrays_tell_sizes(recorder: Recorder) -> Iterator[None]:
    """Record sizes that numpy computes with: its functions take them for plain numbers.

    One target, the functions of numpy itself, such as `np.zeros`, not those of its modules, restored on exit
    (numpy 1.26).
    """
    functions = {name: vars(np)[name] for name in np.__all__ if name in vars(np)}
    telling = {
        name: _TellingFunction(function, recorder)
        for name, function in functions.items()
        if callable(function) and not isinstance(function, type)
    }
    with patched(np, **telling):
        yield


class _TellingFunction:
    """A function of numpy that records which sizes it gets."""

    def __init__(self, function: Callable[..., Any], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        origins = origins_of(*leaves((args, kwargs)))
        if origins:
            self._recorder.converted(origins, self._function.__name__)
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


@contextlib.contextmanager
def threads_are_recorded(recorder: Recorder) -> Iterator[None]:
    """Record lines that start a thread, in which neither an observer nor an export sees anything.

    One target, `threading.Thread.start`, restored on exit (Python 3.11).
    """
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if (site := caller()) is not None:
            recorder.add('value-to-python', 'a thread is started', site)
        original(self)

    with patched(threading.Thread, start=start):
        yield


@contextlib.contextmanager
def numbers_of_scripts_are_recorded(observer: Observer) -> Iterator[None]:
    """Record lines to which a scripted function or method gives numbers, which no observer sees it make.

    Two targets, `torch.jit.ScriptFunction.__call__` and `torch._C.ScriptMethod.__call__`, restored on exit
    (torch 2.13).
    """

    def telling(call: Callable[..., Any]) -> Callable[..., Any]:
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            mark = observer.marks.of_all((args, kwargs))
            result = call(self, *without_sizes(args), **without_sizes(kwargs))
            observer.note_numbers(f'scripted function {self.name}', mark, result)
            return result

        return told

    with contextlib.ExitStack() as stack:
        for kind in (torch.jit.ScriptFunction, torch._C.ScriptMethod):
            stack.enter_context(patched(kind, __call__=telling(kind.__call__)))
        yield


@contextlib.contextmanager
def functions_carry_marks(observer: Observer) -> Iterator[None]:
    """Let results of `autograd.Function.apply` depend on its arguments, and let the observer see the calls.

    One target, the code of `torch.autograd.Function.apply`, restored on exit: it is no function that a
    `TorchFunctionMode` sees, and mmcv has bound it to names, such as `roi_align` (torch 2.13).
    """
    apply = torch.autograd.Function.__dict__['apply'].__func__
    code = apply.__code__
    original = FunctionType(code, apply.__globals__, apply.__name__, apply.__defaults__, apply.__closure__)

    def observed(kind: type, *args: Any, **kwargs: Any) -> Any:
        outer, observer.is_in_function = observer.is_in_function, True
        try:
            result = original(kind, *without_sizes(args), **without_sizes(kwargs))
        finally:
            observer.is_in_function = outer
        mark = observer.marks.of_all((args, kwargs))
        return observer.see(Call('Function.apply', (kind, *args), kwargs, result, mark, observer))

    def with_free_variable(__class__: type) -> Callable[..., Any]:  # the code of `apply` has this one
        def replacement(cls, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
            return __class__._observed(cls, *args, **kwargs)

        return replacement

    torch.autograd.Function._observed = staticmethod(observed)
    apply.__code__ = with_free_variable(torch.autograd.Function).__code__
    try:
        yield
    finally:
        apply.__code__ = code
        del torch.autograd.Function._observed


@contextlib.contextmanager
def compiled_functions_carry_marks(observer: Observer) -> Iterator[None]:
    """Let the tensors that a compiled function gets or gives depend on all that it gets; note the calls.

    Those older than the run (`Marks.constants`) keep their marks. It may write into any other, and no export
    sees it run, unless a function of autograd calls it. Targets are the functions of loaded extension modules
    that take tensors, such as `mmcv._ext`, restored on exit (pybind11).
    """

    def carrying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            marks = observer.marks
            mark = marks.of_all((args, kwargs))
            result = function(*without_sizes(args), **without_sizes(kwargs))
            if mark.inputs and not observer.is_in_function and (site := caller()) is not None:
                observer.recorder.add('value-to-python', f'{function.__name__} is compiled code', site)
            for tensor in tensors_in((args, kwargs, result)):
                if id(tensor) not in marks.constants:
                    marks.add(tensor, mark)
            return result

        return call

    with contextlib.ExitStack() as stack:
        for module in [*sys.modules.values()]:
            functions = {name: carrying(function) for name, function in compiled_functions(module).items()}
            if functions:
                stack.enter_context(patched(module, **functions))
        yield


def compiled_functions(module: Any) -> dict[str, Callable[..., Any]]:
    """Return name -> function of an extension module outside of torch that takes tensors, by its text."""
    file = str(getattr(module, '__file__', None))
    if not file.endswith(tuple(EXTENSION_SUFFIXES)) or str(module.__name__).partition('.')[0] == 'torch':
        return {}
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, BuiltinFunctionType) and 'torch.Tensor' in (value.__doc__ or '')
    }
