"""What PyTorch computes, operator by operator: every module's output, every tap, every tensor in between.

Hooks on all modules say where PyTorch is, a dispatch mode sees the operators that run there. Tensors are
copied as they are made, since later operators may write into them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.core.taps import collect_taps
from mmdeploy_ext.graph.io.modules import plain_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.contract.stages import Stage

NOT_KEPT = (
    *('detach', 'alias', 'view', '_unsafe_view', 'unsqueeze', 'squeeze', 'lift_fresh', '_reshape_alias'),
    *('expand', 't'),
)
"""Operators that give the values they read, in the same order, are not copied again; nor are expansions,
which may be far larger than what they read where ONNX broadcasts, and `t`, which turns weights."""


@dataclasses.dataclass
class Record:
    """One tensor that PyTorch made.

    Attributes:
        value: a copy.
        operator: that made it, without its overload, e.g. 'convolution'.
        module: path of the innermost module that ran, below the exported wrapper; '' outside of all.
        names: taps and names of the graph's tensors that it has.
        outputs_of: modules that gave it, innermost first, and which call of theirs, e.g.
            'bbox_head.atss_cls (call 2)'.
    """

    value: np.ndarray
    operator: str
    module: str
    names: list[str] = dataclasses.field(default_factory=list)
    outputs_of: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name for display."""
        what = self.outputs_of[0] if self.outputs_of else self.module
        return f'{self.names[0]}: {what}' if self.names and what else (self.names or [what])[0]


class Recorder(TorchDispatchMode):
    """Copies what operators give while it is active.

    Attributes:
        records: in the order of execution.
        calls: module path -> indices of the records that its calls gave, in order.
    """

    def __init__(self) -> None:
        """Begin with nothing recorded."""
        super().__init__()
        self.records: list[Record] = []
        self.calls: dict[str, list[int]] = collections.defaultdict(list)
        self.stack: list[str] = []
        self._at: dict[int, int] = {}
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and copy its outputs."""
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__.rstrip('_') or func.overloadpacket.__name__
        if not self._paused and operator not in NOT_KEPT:
            self._keep_parts(operator, args)  # first: what is made of them is looked for behind them
            for tensor in _tensors(result):
                self._keep(tensor, operator)
        return result

    def _keep(self, tensor: torch.Tensor, operator: str) -> int:
        self._paused = True
        value = tensor.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()
        self._paused = False
        self.records.append(Record(value, operator, self.stack[-1] if self.stack else ''))
        self._at[tensor.data_ptr()] = len(self.records) - 1
        return len(self.records) - 1

    def _keep_parts(self, operator: str, args: Sequence[Any]) -> None:
        """Keep what exporters write out: a product before its bias, a norm before its scale."""
        if operator not in PARTS:
            return
        self._paused = True
        try:
            parts = PARTS[operator](*args)
        finally:
            self._paused = False
        for tensor in parts:
            self._keep(tensor, f'part of {operator}')

    def name(self, name: str, tensor: torch.Tensor) -> None:
        """Give a tensor, and whatever was recorded of it, a name."""
        index = self._find(tensor)
        if self.records[index].value.shape != tensor.shape:
            index = self._keep(tensor, 'view')
        self.records[index].names.append(name)

    def left(self, path: str, outputs: Any) -> None:
        """Note what a call of a module gave, which ends with it."""
        found = [self._find(leaf) for leaf in _tensors(outputs)]
        self.stack.pop()
        self.calls[path].extend(found)
        for index in found:
            self.records[index].outputs_of.append(f'{path} (call {len(self.calls[path])})')

    def _find(self, tensor: torch.Tensor) -> int:
        """Return the record of a tensor, a new one where it is not known (or was written into since)."""
        index = self._at.get(tensor.data_ptr())
        if index is not None and self.records[index].value.size == tensor.numel():
            return index
        return self._keep(tensor, 'view')


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
"""Operator -> what lies inside it."""


def record_stages(stages: Sequence[Stage], inputs: Mapping[str, torch.Tensor]) -> Recorder:
    """Run the modules that a graph is made of, in order, under observation.

    The outputs of the stages and all taps have their names in what is returned; inputs are given by theirs.
    """
    recorder, tensors = Recorder(), dict(inputs)
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
def _watched(module: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hook all modules, so that the recorder knows which one runs."""
    with contextlib.ExitStack() as hooks:
        hooks.callback(recorder.stack.clear)
        for path, inner in module.named_modules():
            if path:
                at = plain_path(path)
                enter = inner.register_forward_pre_hook(lambda *_, at=at: recorder.stack.append(at))
                leave = inner.register_forward_hook(
                    lambda _module, _args, outputs, at=at: recorder.left(at, outputs), always_call=True
                )
                for handle in (enter, leave):
                    hooks.enter_context(handle)
        yield
