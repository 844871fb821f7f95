"""Lines and state of a module that an export writes as constants, as the linter observes them.

A graph has the way that its example took, and starts from the state that the module had. Needs no mmcv.
"""

from __future__ import annotations

import _socket
import dataclasses
import datetime
import os
import queue
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.onnx._internal.torchscript_exporter import registration
from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.core.foreign_functions import is_users_value
from mmdeploy_ext.core.model_classes import LIBRARIES, classes_of
from mmdeploy_ext.core.outer_containers import comparable
from mmdeploy_ext.core.source_code import (
    DISTRIBUTIONS,
    OURS,
    codes_in,
    is_in_package,
    is_ours,
    is_typed,
    is_users_file,
)
from mmdeploy_ext.core.users_code import RanCode
from mmdeploy_ext.lint import check
from mmdeploy_ext.lint.nested import copies, copy_of, tensors_in
from mmdeploy_ext.lint.record import ROWS
from mmdeploy_ext.lint.rules import RIGHT, RULES
from mmdeploy_ext.lint.sites import site_at
from mmdeploy_ext.proving.interceptions import interceptions
from mmdeploy_ext.proving.outer_state import (
    Contents,
    arrays_and_numbers,
    codes_of_run,
    draws_left_out,
    draws_repeated,
    functions_of,
    lines_that_set_globals,
    random_state,
    state_of_functions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import CodeType, FrameType

    from mmdeploy_ext.core.outer_containers import OuterContainers
    from mmdeploy_ext.lint.report import Finding

VALUES = ('value-to-python', 'value-to-numpy', 'value-in-branch', 'value-in-loop')
SIZES = ('size-to-python', 'size-in-branch', 'size-in-loop', 'size-changed-in-place')
"""Rules of the linter about numbers that a trace has as constants: values of tensors, and sizes."""
EMPTY = ' and 0 compared'
"""End of the details of a comparison of a size with 0."""


REASONS = dict(
    state='{} changes from run to run',
    everywhere='{} acts on all that PyTorch computes',
    kept='{} keeps a value for later runs',
    random='random numbers of {} are drawn',
    clock='{} reads the time',
    thread='{} hands work to another thread or process',
    outside='{} reads a file or the environment',
    export='{} asks whether an export runs',
    alone='{} is run by PyTorch alone',
    symbolic='{} has a symbolic of its own',
)
"""`TracedLine.by` -> why inputs decide, with the place for a line or a name."""
QUESTIONS = (
    torch.onnx.is_in_onnx_export, torch.jit.is_tracing, torch._C._get_tracing_state, torch._C._is_tracing,
    torch.compiler.is_exporting, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling,
)  # fmt: skip
"""Functions by which code asks whether an export runs."""
HANDING_OVER = {threading.Condition.notify.__code__, threading.Thread.start.__code__}
"""Code of functions that tell another thread that there is work or a result, or start one."""
TO_PROCESSES = {('posix', 'write'), ('posix', 'fork'), ('_posixsubprocess', 'fork_exec')}
"""Module and name of built-in functions that write to a pipe of another process, or start one."""
OUTSIDE = {
    *(('posix', name) for name in ('stat', 'lstat', 'open', 'access', 'listdir', 'scandir')),
    ('io', 'open'),
    ('_io', 'open'),
}
"""Module and name of built-in functions that read a file or tell whether there is one."""
NOTHING_TO_CHOOSE_BY = {'importlib', 'warnings', 'linecache', 'traceback', 'logging'}
"""Modules of Python that read files for imports, and for what they print."""


@dataclasses.dataclass(frozen=True)
class TracedLine:
    """A line of the user's code that chooses by values or sizes.

    Attributes:
        file: as the linter shows it: relative to the working directory, or its name; for line 0 the name of
            the stage, or what `by` says.
        line: its number, from 1 on; 0 if the code of a stage could not be observed.
        code: its text without indentation; for line 0 why the stage could not be observed, '' of all that
            `by` names without a line, such as a 'state'.
        by: 'values' or 'sizes'; 'export' if the line asks whether an export runs, 'alone' if an export does
            not run it, or not all of it; 'clock' if it reads the time, or random bytes of the system;
            'thread' if it hands work to a thread or a process, in which nothing is observed; 'outside' if it
            reads a file, whether there is one, or a variable of the environment; 'state' if `file` is a
            class, a function or a module and its attribute, or a parameter, which every run changes; 'kept'
            if it is one that an earlier run has set, or the line sets a global; 'random' if `file` is what
            every run draws random numbers of; 'everywhere' if it is what the user's code put between PyTorch
            and all models; 'symbolic' if it is a function of autograd or an operator that the user's code
            writes into graphs in a form of its own.
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
        if self.by in ('state', 'kept', 'random', 'clock'):
            return f'{self.reason}; the graph has no state'
        if self.by == 'thread':
            return f'{self.reason} (`{self.code}`); nothing is observed there'
        if self.by == 'outside':
            return f'{self.reason} (`{self.code}`); the graph has what was there'
        if self.by == 'everywhere':
            return f'{self.reason}; the graph has what it does to its own steps alone'
        if self.by == 'symbolic':
            return f'{self.reason}, which PyTorch does not run'
        if self.by == 'alone':
            return f'{self.reason} (`{self.code}`); the export does not run it'
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
    followed: Iterable[Callable[..., Any]] = (),
    containers: OuterContainers | None = None,
) -> list[TracedLine]:
    """Return the lines of the user's code in a module that choose, and what of its state changes.

    Args:
        module: the module, which stays as it is, unless it cannot be copied: then it runs itself.
        inputs: its arguments, tensors in any nesting.
        other_inputs: other arguments, of other sizes if these may differ.
        exporter: 'torchscript' or 'dynamo'; what it follows is left out.
        any_size: whether lines that choose by sizes count.
        places: files and folders whose lines are the user's, though they are among installed packages.
        is_stateless: whether state of the module that a run changes counts; that of models of frames is in
            their graphs. State of functions and classes always counts.
        followed: functions that a verdict names by itself if they differ, see `Family.followed_functions`;
            random numbers that they draw do not count.
        containers: what the user's modules held before the very first run; None: that is not known.
    """
    findings = []
    for observed in (module, *_warmed(module, inputs)):
        findings += check(
            observed,
            inputs,
            other_inputs=other_inputs,
            dynamic=any_size,
            exporters=(exporter,),
            try_exports=False,
            every_choice=True,
        )
    rules = VALUES + SIZES if any_size else VALUES
    rules = tuple(rule for rule in rules if RULES[rule].outcomes[exporter] != RIGHT)
    places = list(places)
    lines = [_line(finding, places) for finding in findings if finding.rule in rules]
    lines = [line for line in lines if line is not None]
    # the code that exports of models of frames ran is recorded: see `Deployment.watching_exports`
    lines += forms_of_exports(module, inputs, exporter, places, is_traced=is_stateless)
    lines += [TracedLine(name, 0, '', 'everywhere') for name in interceptions()]
    lines += changing_state(module, inputs, other_inputs, places, is_stateless, followed)
    if containers is not None:
        lines += kept_by_first_run(module, other_inputs, containers)
    return list(dict.fromkeys(lines))


def _warmed(module: torch.nn.Module, inputs: Sequence[Any]) -> list[torch.nn.Module]:
    """Return a copy of a module that has run, if the run changes what it holds, else nothing.

    Its code may choose by what an earlier run has left.
    """
    copy = copy_of(module)
    if copy is module:
        return []
    before = _state(copy)
    with torch.no_grad():
        copy(*copies(list(inputs)))
    return [copy] if _state(copy) != before else []


def forms_of_exports(
    module: torch.nn.Module,
    inputs: Sequence[Any],
    exporter: str,
    places: Sequence[Path],
    is_traced: bool = True,
) -> list[TracedLine]:
    """Return where the user's code computes something else in an export than in PyTorch.

    These are lines that ask whether an export runs, lines that read the time, and of TorchScript forms that
    are written for functions of autograd and for operators, and with `is_traced` lines that a trace does not
    run. Lines that hand work to another thread or process, in which nothing is observed, are among them,
    and lines that read a file or the environment.
    Other arguments are those of `lines_of_module`.
    """
    lines: dict[TracedLine, None] = {}
    questions = {getattr(function, '__code__', function) for function in QUESTIONS}
    apply = torch.autograd.Function.__dict__['apply'].__func__.__code__

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if (line := _line_that_leaves(frame, event, arg, places)) is not None:
            lines[line] = None
        if event == 'call' and frame.f_code is apply and exporter == 'torchscript':
            kind = frame.f_locals['cls']
            if hasattr(kind, 'symbolic') and is_users_value(kind):
                lines[TracedLine(kind.__name__, 0, '', 'symbolic')] = None
        asks = frame.f_code in questions if event == 'call' else event == 'c_call' and arg in questions
        caller = frame.f_back if event == 'call' else frame
        # a function of `torch.jit.script` asks by itself, and is in the graph with both of its ways
        asks = asks and caller is not None and _names_one_of(QUESTIONS, caller)
        if asks and is_observed_file(Path(caller.f_code.co_filename), places):
            lines[_line_at(caller.f_code, caller.f_lineno, 'export')] = None

    traced = code_of_trace(module, inputs) if is_traced and exporter == 'torchscript' else None
    plain, observed, previous = RanCode(), copy_of(module), sys.getprofile()
    if traced is not None:
        observed.requires_grad_(False)
    sys.setprofile(watch)
    try:
        with torch.no_grad(), draws_repeated(), plain.watched():
            observed(*copies(list(inputs)))
    finally:
        sys.setprofile(previous)
    if traced is not None:
        asking = {(line.file, line.line) for line in lines}
        alone = [
            _line_at(code, line, 'alone')
            for key, (code, _) in plain.codes.items()
            for line in plain.lines_beside(traced, key)
        ]
        lines |= {line: None for line in alone if (line.file, line.line) not in asking}
    registered = users_symbolics() if exporter == 'torchscript' else set()
    if registered:
        with torch.no_grad():
            example = tuple(copies(list(inputs)))
            graph = torch.jit.trace(copy_of(module), example, check_trace=False).inlined_graph
        registered &= _operators(graph)
    return [*lines, *(TracedLine(name, 0, '', 'symbolic') for name in sorted(registered))]


def code_of_trace(module: torch.nn.Module, inputs: Sequence[Any]) -> RanCode | None:
    """Return what of the user's code runs while a module is traced for an export.

    None if that fails, or if the module cannot be copied.

    In a trace sizes are tensors, functions answer that an export runs, and the stack is that of a trace.
    Arguments are those of `lines_of_module`; random numbers are drawn again afterwards.
    """
    traced, observed = RanCode(), copy_of(module)
    if observed is module:
        return None
    observed.requires_grad_(False)  # a trace takes weights that need gradients for no constants

    def flat(*args: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_in(observed(*args)))

    try:
        with (
            draws_repeated(),
            warnings.catch_warnings(),
            torch.no_grad(),
            patched(GLOBALS, in_onnx_export=True),
            traced.watched(),
        ):
            warnings.simplefilter('ignore')
            torch.jit.trace(flat, tuple(copies(list(inputs))), check_trace=False, strict=False)
    except Exception:  # of what the exporter prepares, such as operators of ours
        return None
    return traced


def _names_one_of(functions: Iterable[Callable[..., Any]], frame: FrameType) -> bool:
    """Return whether code names one of these functions, by its own name or by another one."""
    code, functions = frame.f_code, list(functions)
    if not {*code.co_names}.isdisjoint(function.__name__ for function in functions):
        return True
    scopes = frame.f_locals, frame.f_globals
    values = [scope[name] for scope in scopes for name in (*code.co_names, *scopes[0]) if name in scope]
    behind = [getattr(value, 'func', value) for value in values]
    return any(value is function for value in behind for function in functions)


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


def changing_state(
    module: torch.nn.Module,
    inputs: Sequence[Any],
    other_inputs: Sequence[Any],
    places: Sequence[Path],
    is_stateless: bool,
    followed: Iterable[Callable[..., Any]] = (),
) -> list[TracedLine]:
    """Return the state that the runs of a module change or keep, and what they draw random numbers of.

    The lines that set a global are among them, see `TracedLine.by`.

    A copy of the module, or itself if it cannot be copied, runs three times on the same inputs; what is
    stored anew in every run is no state, as long as it is equal. A run on other inputs leaves what it leaves
    in a copy that has not run, unless a value of the first run is kept; such attributes are returned only if
    no state changes. State is what attributes of the module's parts hold, unless `is_stateless` is False, and
    what functions and classes of the user's hold. Arguments are those of `lines_of_module`.
    """
    copy, states, drawn = copy_of(module), [], random_state()
    left_out = [code for function in followed for code in codes_in(function.__code__)]

    def run(observed: torch.nn.Module = copy, values: Sequence[Any] = inputs) -> None:
        with torch.no_grad(), draws_left_out(left_out):
            observed(*copies(list(values)))

    codes = codes_of_run(run, lambda code: is_observed_file(Path(code.co_filename), places))
    functions = functions_of(codes)
    kinds = [base for kind in classes_of(copy) for base in kind.__mro__ if is_users_value(base)]
    for _ in range(2):
        run()
        outer = state_of_functions(functions, kinds, _is_users_object)
        states.append(outer | (_state(copy) if is_stateless else {}))
    lines = [
        TracedLine(title.split()[0], 0, '', 'state')
        for title, value in states[1].items()
        if value != states[0].get(title)
    ]
    if is_stateless and copy is not module:
        fresh = copy_of(module)
        run(copy, other_inputs)
        run(fresh, other_inputs)
        later, first = _state(copy), _state(fresh)
        kept_lines = [
            TracedLine(name.split()[0], 0, '', 'kept') for name in later if later[name] != first.get(name)
        ]
        lines += kept_lines if not lines else []
    if copy is not module:
        lines += [
            TracedLine(name, 0, '', 'state')
            for name, weight in module.named_parameters()
            if not torch.equal(weight, copy.get_parameter(name))
        ]
    lines += [_line_at(code, line, 'kept') for code in codes for line in lines_that_set_globals(code)]
    lines += [
        TracedLine(name, 0, '', 'random') for name, state in random_state().items() if state != drawn[name]
    ]
    return list(dict.fromkeys(lines))


def kept_by_first_run(
    module: torch.nn.Module, inputs: Sequence[Any], containers: OuterContainers
) -> list[TracedLine]:
    """Return which containers of the user's modules hold other values than if these inputs had come first.

    What a run puts there anew, or whatever the inputs are, such as a grid of a size, does not count.

    Args:
        module: the module, which stays as it is, unless it cannot be copied: then it runs itself.
        inputs: its arguments, other ones than those of its first run; tensors of floats among them, not those
            in nested values, are changed a little, since those of a model of frames are the same.
        containers: what the user's modules held before the first run.
    """
    if not containers.changed():
        return []
    values = [
        value * 0.9375 if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in copies(list(inputs))
    ]
    with torch.no_grad():
        copy_of(module)(*copies(values))
        changed = containers.changed()
        later = comparable(changed, arrays_and_numbers)
        with containers.restored():
            copy_of(module)(*copies(values))
            first = comparable(changed, arrays_and_numbers)
    names = [key[0] for key, value in first.items() if later.get(key, value) != value]
    return [TracedLine(name, 0, '', 'kept') for name in dict.fromkeys(names)]


def _line_at(code: CodeType, line: int, by: str) -> TracedLine:
    site = site_at(code.co_filename, line, code.co_name)
    return TracedLine(site.file, site.line, site.code, by)


def _state(module: torch.nn.Module) -> dict[str, Any]:
    """Return class and attribute, and path -> what can be compared of the attributes of a module's parts.

    Parts of this package are left out.
    """
    parts = dict(module.named_modules())
    contents, state, fields = Contents(parts.values()), {}, vars(torch.nn.Module())
    for path, part in parts.items():
        if type(part).__module__.partition('.')[0] == OURS.name:
            continue
        for name, value in (*vars(part).items(), *part._buffers.items()):
            if name not in fields:
                state[f'{type(part).__name__}.{name} {path}'] = contents.of(value)
    return state


def _is_users_object(value: Any) -> bool:
    """Return whether a class or a module is the user's."""
    if isinstance(value, type):
        return is_users_value(value)
    file = getattr(value, '__file__', None)
    return bool(file) and is_observed_file(Path(file), ())


def _reads_time(function: Any) -> bool:
    """Return whether a built-in function gives the time, or bytes that are drawn by the system."""
    if getattr(function, '__module__', None) == 'time':
        return function.__name__ != 'sleep'
    kind = getattr(function, '__self__', None)
    is_date = isinstance(kind, type) and issubclass(kind, datetime.date)
    return function is os.urandom or (is_date and function.__name__ in ('now', 'utcnow', 'today'))


def hands_over(frame: FrameType, event: str, function: Any) -> bool:
    """Return whether an event of `sys.setprofile` passes something to another thread or process.

    `frame` is the one that `sys.setprofile` gives: of a Python function that is called ('call'), or that
    calls the built-in one `function` ('c_call').
    """
    if event != 'c_call':
        return event == 'call' and frame.f_code in HANDING_OVER
    kind, name = type(getattr(function, '__self__', None)), getattr(function, '__name__', '')
    if (getattr(function, '__module__', None), name) in TO_PROCESSES:
        return True
    is_socket = issubclass(kind, _socket.socket) and name.startswith('send')
    return is_socket or (kind is queue.SimpleQueue and name == 'put')


def reads_outside(frame: FrameType, event: str, function: Any) -> bool:
    """Return whether an event of `sys.setprofile` reads a file, looks for one, or reads the environment.

    Arguments are those of `hands_over`.
    """
    if event != 'c_call':
        return event == 'call' and frame.f_code is os._Environ.__getitem__.__code__
    return (getattr(function, '__module__', None), getattr(function, '__name__', '')) in OUTSIDE


def _line_that_leaves(
    frame: FrameType, event: str, function: Any, places: Iterable[Path]
) -> TracedLine | None:
    """Return the line of the user's that takes from outside of the model, or gives work there, in an event.

    None if none does. A line that reads the time does so itself. Another one may do so by functions of
    Python's own, but not of its imports and warnings; to a thread or process any function may pass the work.
    """
    users: FrameType | None = frame
    if event == 'c_call' and _reads_time(function):
        by, may_pass = 'clock', False
    elif hands_over(frame, event, function):
        by, may_pass = 'thread', True
    elif reads_outside(frame, event, function):
        by, may_pass = 'outside', True
    else:
        return None
    while may_pass and users is not None and not is_observed_file(Path(users.f_code.co_filename), places):
        package = str(users.f_globals.get('__name__')).partition('.')[0]
        if by == 'outside' and (package not in sys.stdlib_module_names or package in NOTHING_TO_CHOOSE_BY):
            return None
        users = users.f_back
    if users is None or not is_observed_file(Path(users.f_code.co_filename), places):
        return None
    return _line_at(users.f_code, users.f_lineno, by)


def is_observed_file(path: Path, places: Iterable[Path]) -> bool:
    """Return whether lines of a file count: it is the user's, or in one of `places` of installed packages.

    Code that was made of a text or typed, see `source_code.is_typed`, is the user's.
    """
    if is_users_file(path):
        return not path.name.startswith('<') or is_typed(path.name)
    is_packaged = is_in_package(path) and not is_ours(path)
    return is_packaged and any(path.is_relative_to(place) for place in places)


def _line(finding: Finding, places: Sequence[Path]) -> TracedLine | None:
    """Return the line of the user's that chooses, or that calls what does; None if there is none.

    An assert, or an `if` that only raises, chooses nothing unless its exception is caught. What OpenMMLab and
    PyTorch choose by sizes, their files of any size have; by values they choose nothing that an export makes.
    """
    site, by = finding.site, 'values' if finding.rule in VALUES else 'sizes'
    if site is None or (site.waiting == 'guard' and not site.caught):
        return None
    if not is_observed_file(Path(site.path), places):
        is_known = site.file.split('/')[0] in (*DISTRIBUTIONS, *LIBRARIES)
        # libraries test whether there are any regions, and compute the same without
        is_by_rows = all(detail.startswith(ROWS) or detail.endswith(EMPTY) for detail in finding.details)
        if site.outer is None or (is_known and (by == 'sizes' or is_by_rows)):
            return None
        site = site.outer
        if not is_observed_file(Path(site.path), places):
            return None
    return TracedLine(site.file, site.line, site.code, by)
