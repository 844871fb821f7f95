"""Trace a module once, observed, and report what an export of it will get wrong."""

import collections
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import UsageError, one_line
from mmdeploy_ext.lint.observe import Event, Observer, copies, copy_of, leaves, tensors_in
from mmdeploy_ext.lint.report import Report, make_report
from mmdeploy_ext.lint.rules import EXPORTERS, check_exporters
from mmdeploy_ext.lint.trial import Trial, refused, try_export, unknown_operators

TRAINED_LAYERS = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)


def check(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    *,
    other_inputs: Sequence[Any] | None = None,
    input_names: Sequence[str] | None = None,
    dynamic: bool = True,
    exporters: Sequence[str] = EXPORTERS,
    opset: int | None = None,
    try_exports: bool = True,
    name: str = '',
) -> Report:
    """Report what an export of a module will get wrong, with the lines of code and what to write instead.

    Copies of the module run and are traced; the module stays as it was, unless PyTorch cannot copy it.

    Args:
        module: any module that `torch.jit.trace` takes.
        example_inputs: tuple of positional arguments; tensors may be nested in lists, tuples and dicts.
        other_inputs: arguments with the sizes that the graph will meet later; sizes that are equal in both
            are fixed. None: every size may differ.
        input_names: names of the arguments; default: the names in the signature of `forward`.
        dynamic: False leaves out findings about sizes.
        exporters: exporters that severities are for: 'torchscript', 'dynamo'.
        opset: opset of the trial exports; None: each exporter's default.
        try_exports: also export with each exporter; errors are in `Report.trials`.
        name: name in the report; '' for the class of the module.

    Raises:
        UsageError: inputs that are no tuple or list, hold no tensor, or that `forward` does not take; an
            unknown exporter.
    """
    check_exporters(exporters)
    _check_inputs(example_inputs, other_inputs)
    outputs = _outputs(module, example_inputs)
    names = _tensor_names(module, example_inputs, input_names)
    observer = _observe(module, example_inputs, names)
    events = list(observer.events)
    if not dynamic:
        events = [event for event in events if event.sizes is None]
    elif other_inputs is not None:
        _outputs(module, other_inputs)
        events = _without_fixed(events, _observe(module, other_inputs, names).events)
    events += _input_events(module, example_inputs, outputs, observer, dynamic)
    trained = [part for part in module.modules() if part.training and isinstance(part, TRAINED_LAYERS)]
    if any(getattr(part, 'p', 1) > 0 for part in trained):  # dropout with p = 0 does nothing
        events.append(Event('training-mode', None, 'the module is in training mode'))
    trials: list[Trial] = []
    for exporter in exporters if try_exports else ():
        trials.append(try_export(module, example_inputs, exporter, opset, observer.has_data))
    if 'torchscript' in exporters and observer.error is not None and not try_exports:
        trials.append(refused('torchscript', opset, observer.error))
    for trial in trials:
        if trial.exporter == 'torchscript' and trial.refused and observer.graph is not None:
            events += unknown_operators(observer.graph, trial.opset)
    return make_report(name or type(module).__name__, events, exporters, trials)


def _check_inputs(example_inputs: Any, other_inputs: Any) -> None:
    for argument, inputs in (('example_inputs', example_inputs), ('other_inputs', other_inputs)):
        if inputs is not None and not isinstance(inputs, list | tuple):
            raise UsageError(
                f'lint: {argument} is a {type(inputs).__name__}; expected a tuple of the arguments of '
                f'forward, for one argument (x,)'
            )
    if not list(tensors_in(example_inputs)):
        raise UsageError('lint: example_inputs hold no tensor; expected the arguments of forward')


def _outputs(module: torch.nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """Return the flat outputs of a copy of a module."""
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return list(leaves(copy_of(module)(*copies(list(inputs)))))
    except Exception as error:
        shapes = ', '.join(f'{str(tensor.dtype)[6:]} {tuple(tensor.shape)}' for tensor in tensors_in(inputs))
        raise UsageError(
            f'lint: {type(module).__name__} does not run on these inputs ({shapes}): '
            f'{type(error).__name__}: {one_line(error)}; give it inputs that its forward takes'
        ) from error


def _observe(module: torch.nn.Module, inputs: Sequence[Any], names: Sequence[str]) -> Observer:
    """Trace a copy of a module, as in an export; if that fails, as outside of exports."""
    for exporting in (True, False):
        observer = Observer(copy_of(module), names)
        observer.trace(copies(list(inputs)), exporting)
        if observer.error is None:
            break
    return observer


def _without_fixed(events: Sequence[Event], other_events: Sequence[Event]) -> list[Event]:
    """Return the events without the events whose sizes are the same in the run on other inputs."""
    other_sizes: dict[Any, list[Any]] = collections.defaultdict(list)
    for event in other_events:
        other_sizes[event.rule, event.site].append(event.sizes)
    kept = []
    for event in events:
        sizes = other_sizes[event.rule, event.site]
        if event.sizes is None or not sizes or sizes.pop(0) != event.sizes:
            kept.append(event)
    return kept


def _input_events(
    module: torch.nn.Module, inputs: Sequence[Any], outputs: list[Any], observer: Observer, dynamic: bool
) -> list[Event]:
    """Return events for the inputs that the outputs of the trace do not change with."""
    events: list[Event] = []
    if observer.graph is None:
        return events
    count = len(list(tensors_in(inputs)))
    traced_outputs = _traced_outputs(observer, inputs)
    for index, value in enumerate(list(observer.graph.inputs())[-count:]):
        name, changed = observer.names[index], _with_change(inputs, index)
        uses = {use.user.kind() for use in value.uses()}
        if _differs(traced_outputs, _traced_outputs, observer, changed):
            continue
        if _differs(outputs, _outputs, module, changed):
            detail = f'input {name!r} changes the outputs, but not through tensors'
            events.append(Event('frozen-input', None, detail))
        elif not uses:
            events.append(Event('unused-input', None, f'input {name!r} reaches no output'))
        elif not dynamic and uses == {'aten::size'}:
            events.append(Event('unused-input', None, f'input {name!r} counts for its sizes alone'))
    return events


def _traced_outputs(observer: Observer, inputs: Sequence[Any]) -> list[Any]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(leaves(observer.traced(*copies(list(tensors_in(inputs))))))


def _with_change(inputs: Sequence[Any], index: int) -> list[Any]:
    """Return a copy of the inputs with other values in tensor `index`."""
    args = copies(list(inputs))
    tensor = list(tensors_in(args))[index]
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.is_floating_point():
        tensor.add_(1 + tensor.abs() / 64)  # 1 alone is lost in a time stamp of float32
    else:
        tensor.add_(torch.ones_like(tensor))
    return args


def _differs(outputs: list[Any], run: Callable[..., list[Any]], *args: Any) -> bool:
    """Return whether a run gives other outputs; an error of the run is a difference."""
    try:
        changed = run(*args)
    except Exception:
        return True
    return len(outputs) != len(changed) or not all(map(_are_equal, outputs, changed))


def _are_equal(expected: Any, value: Any) -> bool:
    """Return whether outputs are equal; a NaN equals a NaN in the same place."""
    if type(expected) is not type(value):
        return False
    if isinstance(expected, torch.Tensor | np.ndarray):
        if expected.shape != value.shape:
            return False
        return bool(((expected == value) | ((expected != expected) & (value != value))).all())
    return bool(expected == value or (expected != expected and value != value))


def _tensor_names(
    module: torch.nn.Module, example_inputs: Sequence[Any], input_names: Sequence[str] | None
) -> list[str]:
    """Return a name for each tensor of the inputs: 'x', 'data[1]', or 'input_2' of an argument of `*args`."""
    if input_names is None:
        parameters = inspect.signature(module.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        input_names = [parameter.name for parameter in parameters if parameter.kind in positional]
    names = []
    for index, value in enumerate(example_inputs):
        name = input_names[index] if index < len(input_names) else f'input_{index}'
        count = len(list(tensors_in(value)))
        names += [name] if isinstance(value, torch.Tensor) else [f'{name}[{item}]' for item in range(count)]
    return names
