"""Run a module once and see every call of torch that it makes, with what each tensor depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

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

IN_PLACE_OPERATORS = {'__iand__', '__ior__', '__ixor__', '__ilshift__', '__irshift__', '__ipow__'}
"""Functions of `&=`, `|=`, `^=`, `<<=`, `>>=` and `**=`; that of `+=` is `add_`, and so on."""
OF_ALL_SIZES = {'numel', 'nelement', 'stride', 'nbytes.__get__'}
"""Functions of torch that give numbers which follow from all sizes of a tensor."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a tensor depends on.

    Attributes:
        inputs: bit i is set if its values depend on those of input i.
        origins: the sizes, of shapes that were read, from which its values were computed.
    """

    inputs: int = 0
    origins: Origins = frozenset()

    def __or__(self, other: Mark) -> Mark:
        """Return what depends on both."""
        if other is self or other is NOTHING:
            return self
        if self is NOTHING:
            return other
        return Mark(self.inputs | other.inputs, self.origins | other.origins)


NOTHING = Mark()
"""The mark of a tensor that depends on no input and no size."""


class Marks:
    """The marks of all live tensors of a run; a tensor without one has `NOTHING`."""

    def __init__(self) -> None:
        self._of = WeakIdKeyDictionary()

    def put(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Set the mark of a tensor, in place of an earlier one; that of its base stays."""
        self._of[tensor] = mark

    def of(self, tensor: torch.Tensor) -> Mark:
        """Return the mark of a tensor: its own, together with that of the tensor of which it is a view."""
        mark, base = self._of.get(tensor, NOTHING), tensor._base
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

    Attributes:
        recorder: the events and sizes of the run.
        marks: what each tensor of the run depends on.
        parts: view -> how and on which line (`Site.text`) it was made, for views that are one indexing of a
            whole tensor by numbers ('select') or also by slices ('slice'), see `watches.parts`.
        hidden: tensors inside of torch of which a result is a view, such as that of a linear layer: no code
            outside of torch has them.
        sized: numbers of the inputs whose sizes a line outside of torch read.
        state: id -> name of the module's parameters and buffers.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        module: torch.nn.Module,
        watches: Sequence[Callable[[Call], None]],
    ) -> None:
        super().__init__()
        self.recorder = Recorder()
        self.marks = Marks()
        self.inputs = list(inputs)
        self.watches = watches
        self.parts = WeakIdKeyDictionary()
        self.hidden = WeakIdKeyDictionary()
        self.sized: set[int] = set()
        state = (*module.named_buffers(), *module.named_parameters())
        self.state = {id(tensor): name for name, tensor in state}
        for index, tensor in enumerate(inputs):
            self.marks.put(tensor, Mark(1 << index))

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
        result = func(*without_sizes(args), **without_sizes(kwargs))
        return self.see(Call(name, args, kwargs, result, mark, self))

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
        return self.recorder.read_sizes(site, tuple(tensor.shape))

    def _mark_results(self, call: Call) -> None:
        """Give the results the marks of the arguments."""
        mark = call.mark
        if call.name in SHAPE_ONLY:
            others = {name: value for name, value in call.kwargs.items() if name != 'input'}
            mark = self.marks.of_all((call.args[1:], others))
            if call.name in VALUES_FROM_SIZES:
                mark |= Mark(0, call.mark.origins)
        target = call.args[0] if call.in_place and call.args else None
        if isinstance(target, torch.Tensor):
            self.marks.add(target, mark)
        for tensor in tensors_in(call.result):
            if tensor is not target:
                self.marks.put(tensor, mark)
        for tensor in tensors_in(call.kwargs.get('out')):
            self.marks.add(tensor, mark)


@contextlib.contextmanager
def as_exporting() -> Iterator[None]:
    """Pretend that an export is running, so that the forms made for exports run.

    Two targets, `torch.onnx.is_in_onnx_export` and `torch.jit.is_tracing`, restored on exit (torch 2.13).
    """
    with patched(torch.onnx, is_in_onnx_export=lambda: True), patched(torch.jit, is_tracing=lambda: True):
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
        result = original(kind, *without_sizes(args), **without_sizes(kwargs))
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
