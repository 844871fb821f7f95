"""Trace a module once, observed, and report what an export of it will get wrong."""

import collections
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmdeploy_ext.base.errors import UsageError, one_line
from mmdeploy_ext.bench.lint.observe import Event, Observer, copies, copy_of, tensors_in
from mmdeploy_ext.bench.lint.report import Report, make_report
from mmdeploy_ext.bench.lint.rules import EXPORTERS, check_exporters
from mmdeploy_ext.bench.lint.trial_exports import TrialExport, refused, try_export, unknown_operators

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
        other_inputs: arguments of other sizes; equal sizes are fixed. None: every size may differ.
        input_names: names of the arguments; default: from the signature of `forward`.
        dynamic: False leaves out findings about sizes.
        exporters: 'torchscript', 'dynamo': exporters that severities are for.
        opset: opset of the trial exports; None: each exporter's default.
        try_exports: also export with each exporter; errors are in `Report.trials`.
        name: name in the report; '' for the class of the module.

    Raises:
        UsageError: no tensor in the inputs, inputs that `forward` does not take, or an unknown exporter.
    """
    check_exporters(exporters)
    _check_inputs(example_inputs, other_inputs)
    _run(module, example_inputs)
    names = _tensor_names(module, example_inputs, input_names)
    observer = _observe(module, example_inputs, names)
    events = list(observer.events)
    if not dynamic:
        events = [event for event in events if event.sizes is None]
    elif other_inputs is not None:
        _run(module, other_inputs)
        events = _without_fixed(events, _observe(module, other_inputs, names).events)
    if observer.graph is not None:
        events += _unused_inputs(observer, len(list(tensors_in(example_inputs))), dynamic)
    trained = [part for part in module.modules() if part.training and isinstance(part, TRAINED_LAYERS)]
    if any(getattr(part, 'p', 1) > 0 for part in trained):  # dropout with p = 0 does nothing
        events.append(Event('training-mode', None, 'the module is in training mode'))
    trials: list[TrialExport] = []
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
        raise UsageError('lint: example_inputs have no tensor; expected the arguments of forward')


def _run(module: torch.nn.Module, inputs: Sequence[Any]) -> None:
    try:
        with torch.no_grad():
            copy_of(module)(*copies(list(inputs)))
    except Exception as error:
        shapes = ', '.join(f'{str(tensor.dtype)[6:]} {tuple(tensor.shape)}' for tensor in tensors_in(inputs))
        raise UsageError(
            f'lint: {type(module).__name__} does not run on these inputs ({shapes}): '
            f'{type(error).__name__}: {one_line(error)}; pass inputs that its forward accepts'
        ) from error


def _observe(module: torch.nn.Module, inputs: Sequence[Any], names: Sequence[str]) -> Observer:
    """Trace a copy of a module as in an export, or as outside of exports if that fails."""
    for exporting in (True, False):
        observer = Observer(copy_of(module), names)
        observer.trace(copies(list(inputs)), exporting)
        if observer.error is None:
            break
    return observer


def _without_fixed(events: Sequence[Event], other_events: Sequence[Event]) -> list[Event]:
    """Leave out events with the same sizes in the run on other inputs."""
    other_sizes: dict[Any, list[Any]] = collections.defaultdict(list)
    for event in other_events:
        other_sizes[event.rule, event.site].append(event.sizes)
    kept = []
    for event in events:
        sizes = other_sizes[event.rule, event.site]
        if event.sizes is None or not sizes or sizes.pop(0) != event.sizes:
            kept.append(event)
    return kept


def _unused_inputs(observer: Observer, count: int, dynamic: bool) -> Iterator[Event]:
    """Yield an event per input tensor without influence on the traced outputs."""
    for name, value in zip(observer.names, list(observer.graph.inputs())[-count:], strict=True):
        uses = {use.user.kind() for use in value.uses()}
        if not uses:
            yield Event('unused-input', None, f'input {name!r} reaches no output')
        elif not dynamic and uses == {'aten::size'}:
            yield Event('unused-input', None, f'input {name!r} matters only through its size')


def _tensor_names(
    module: torch.nn.Module, example_inputs: Sequence[Any], input_names: Sequence[str] | None
) -> list[str]:
    """Names of the input tensors: 'x', 'data[1]', or 'input_2' of an argument of `*args`."""
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
