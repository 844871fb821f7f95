"""Records of PyTorch's tensors: every module's output, every tap, every tensor in between."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.graphs.io.files import plain_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.spec.tensors import Stage

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
