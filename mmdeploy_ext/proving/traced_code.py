"""Lines and state of a module that an export writes as constants, as the linter observes them.

A graph has the way that its example took, and starts from the state that the module had. Needs no mmcv.
"""

from __future__ import annotations

import dataclasses
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.onnx._internal.torchscript_exporter import registration

from mmdeploy_ext.core.foreign_functions import is_users_value
from mmdeploy_ext.core.model_classes import OURS
from mmdeploy_ext.core.source_code import is_in_package
from mmdeploy_ext.lint import check
from mmdeploy_ext.lint.nested import copies, copy_of, tensors_in
from mmdeploy_ext.lint.rules import RIGHT, RULES
from mmdeploy_ext.lint.sites import site_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

    from mmdeploy_ext.lint.report import Finding

VALUES = ('value-to-python', 'value-to-numpy', 'value-in-branch', 'value-in-loop')
SIZES = ('size-to-python', 'size-in-branch', 'size-in-loop', 'size-changed-in-place')
"""Rules of the linter about numbers that a trace has as constants: values of tensors, and sizes."""


REASONS = dict(
    state='{} changes from run to run',
    export='{} asks whether an export runs',
    symbolic='{} has a symbolic of its own',
)
"""`TracedLine.by` -> why inputs decide, with the place for a line or a name."""
QUESTIONS = (
    torch.onnx.is_in_onnx_export, torch.jit.is_tracing, torch._C._get_tracing_state, torch._C._is_tracing,
    torch.compiler.is_exporting, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling,
)  # fmt: skip
"""Functions by which code asks whether an export runs."""


@dataclasses.dataclass(frozen=True)
class TracedLine:
    """A line of the user's code that chooses by values or sizes.

    Attributes:
        file: as the linter shows it: relative to the working directory, or its name; for line 0 the name of
            the stage.
        line: its number, from 1 on; 0 if the code of a stage could not be observed.
        code: its text without indentation; for line 0 the reason.
        by: 'values' or 'sizes'; 'export' if the line asks whether an export runs; 'state' if `file` is a
            class and its attribute, which every run changes; 'symbolic' if `file` is a function of autograd
            or an operator that the user's code writes into graphs in a form of its own.
    """

    file: str
    line: int
    code: str
    by: str

    @property
    def reason(self) -> str:
        """Why inputs decide, in a few words for the claim of a verdict."""
        if self.by in REASONS:
            return REASONS[self.by].format(f'{self.file}:{self.line}' if self.line else self.file)
        if not self.line:
            return f'{self.file} could not be observed'
        return f'{self.file}:{self.line} chooses by {self.by}'

    @property
    def text(self) -> str:
        """The sentence of the verdict about it."""
        if self.by == 'state':
            return f'{self.reason}; the graph has no state'
        if self.by == 'symbolic':
            return f'{self.reason}, which PyTorch does not run'
        if self.by == 'export':
            return f'{self.reason} (`{self.code}`); the graph has what it computes then'
        if not self.line:
            return f'{self.reason}: {self.code}'
        return f'{self.reason} (`{self.code}`); the graph has what the traced input chose'


def lines_of_module(
    module: torch.nn.Module,
    inputs: Sequence[Any],
    other_inputs: Sequence[Any],
    exporter: str,
    any_size: bool,
    places: Iterable[Path] = (),
    is_stateless: bool = True,
) -> list[TracedLine]:
    """Return the lines of the user's code in a module that choose, and what of its state changes.

    Args:
        module: the module, which stays as it is.
        inputs: its arguments, tensors in any nesting.
        other_inputs: other arguments, of other sizes if these may differ.
        exporter: 'torchscript' or 'dynamo'; what it follows is left out.
        any_size: whether lines that choose by sizes count.
        places: files and folders whose lines are the user's, though they are among installed packages.
        is_stateless: whether state that a run changes counts; that of models of frames is in their graphs.
    """
    report = check(
        module,
        inputs,
        other_inputs=other_inputs,
        dynamic=any_size,
        exporters=(exporter,),
        try_exports=False,
    )
    rules = VALUES + SIZES if any_size else VALUES
    rules = tuple(rule for rule in rules if RULES[rule].outcomes[exporter] != RIGHT)
    places = list(places)
    lines = [_line(finding) for finding in report if finding.rule in rules and _is_users(finding, places)]
    lines += forms_of_exports(module, inputs, exporter, places)
    names = changing_state(module, inputs) if is_stateless else []
    return lines + [TracedLine(name, 0, '', 'state') for name in names]


def forms_of_exports(
    module: torch.nn.Module, inputs: Sequence[Any], exporter: str, places: Sequence[Path]
) -> list[TracedLine]:
    """Return where the user's code computes something else in an export than in PyTorch.

    These are lines that ask whether an export runs, and of TorchScript forms that are written for functions
    of autograd and for operators. Arguments are those of `lines_of_module`.
    """
    lines: dict[TracedLine, None] = {}
    questions = {getattr(function, '__code__', function) for function in QUESTIONS}
    names = {function.__name__ for function in QUESTIONS}
    apply = torch.autograd.Function.__dict__['apply'].__func__.__code__

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if event == 'call' and frame.f_code is apply and exporter == 'torchscript':
            kind = frame.f_locals['cls']
            if hasattr(kind, 'symbolic') and is_users_value(kind):
                lines[TracedLine(kind.__name__, 0, '', 'symbolic')] = None
        asks = frame.f_code in questions if event == 'call' else event == 'c_call' and arg in questions
        caller = frame.f_back if event == 'call' else frame
        # a function of `torch.jit.script` asks by itself, and is in the graph with both of its ways
        asks = asks and caller is not None and bool(names & {*caller.f_code.co_names})
        if asks and _is_users_file(Path(caller.f_code.co_filename), places):
            site = site_at(caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name)
            lines[TracedLine(site.file, site.line, site.code, 'export')] = None

    observed, previous = copy_of(module), sys.getprofile()
    sys.setprofile(watch)
    try:
        with torch.no_grad():
            observed(*copies(list(inputs)))
    finally:
        sys.setprofile(previous)
    registered = users_symbolics() if exporter == 'torchscript' else set()
    if registered:
        with torch.no_grad():
            example = tuple(copies(list(inputs)))
            graph = torch.jit.trace(copy_of(module), example, check_trace=False).inlined_graph
        registered &= _operators(graph)
    return [*lines, *(TracedLine(name, 0, '', 'symbolic') for name in sorted(registered))]


def users_symbolics() -> set[str]:
    """Return the names of the operators, such as aten::hardtanh, that the user's code writes into graphs.

    PyTorch itself registers functions of autograd that it has exported, by names such as ::MyFunction, which
    nobody else can register; `forms_of_exports` finds these where they run.
    """
    groups = registration.registry._registry.values()
    return {
        group._name
        for group in groups
        if not group._name.startswith('::')
        and any(is_users_value(group._functions[opset]) for opset in group._functions)
    }


def _operators(graph: Any) -> set[str]:
    """Return the names of the operators in a graph of TorchScript, also in its blocks."""
    names, waiting = set(), [graph]
    while waiting:
        for node in waiting.pop().nodes():
            names.add(node.kind())
            waiting += node.blocks()
    return names


def changing_state(module: torch.nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Return class and attribute of the numbers, tensors and containers of a module that every run changes.

    A copy of the module runs three times on the same inputs; what is stored anew in every run is no state, as
    long as it is equal. Nothing is said of a module that cannot be copied.
    """
    copy, states = copy_of(module), []
    if copy is module:
        return []
    for _ in range(3):
        with torch.no_grad():
            copy(*copies(list(inputs)))
        states.append(_state(copy))
    changed = (title for (path, title), value in states[2].items() if value != states[1].get((path, title)))
    return list(dict.fromkeys(changed))


def _state(module: torch.nn.Module) -> dict[tuple[str, str], Any]:
    """Return (path, class and attribute) -> what can be compared of the attributes of a module's parts.

    Parts of this package and of PyTorch are left out.
    """
    state: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        if type(part).__module__.partition('.')[0] in (OURS.name, 'torch'):
            continue
        for name, value in (*vars(part).items(), *part._buffers.items()):
            key = path, f'{type(part).__name__}.{name}'
            if isinstance(value, bool | int | float | str):
                state[key] = value
            elif isinstance(value, torch.Tensor):
                state[key] = _content(value)
            elif isinstance(value, list | tuple | dict | set) and name not in vars(torch.nn.Module()):
                state[key] = len(value), [_content(tensor) for tensor in tensors_in(value)]
    return state


def _content(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.detach().cpu().numpy().tobytes()


def _is_users(finding: Finding, places: Iterable[Path]) -> bool:
    """Return whether a finding is at a line of the user's that is no assert nor the like.

    That is one in the folders of the user's classes, or of no installed package and not of this one.
    """
    site = finding.site
    return site is not None and site.waiting != 'guard' and _is_users_file(Path(site.path), places)


def _is_users_file(path: Path, places: Iterable[Path]) -> bool:
    """Return whether a file is in one of the user's places, or of no package, of Python and of this one."""
    if path.is_relative_to(OURS) or path.is_relative_to(sysconfig.get_path('stdlib')):
        return False
    is_packaged = is_in_package(path) or path.name.startswith('<')
    return not is_packaged or any(path.is_relative_to(place) for place in places)


def _line(finding: Finding) -> TracedLine:
    by = 'values' if finding.rule in VALUES else 'sizes'
    return TracedLine(finding.site.file, finding.site.line, finding.site.code, by)
