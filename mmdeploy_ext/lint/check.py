"""Observe a module once and report what an export of it will get wrong."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import UsageError, one_line
from mmdeploy_ext.lint.nested import copies, copy_of, leaves, tensors_in
from mmdeploy_ext.lint.observe import Observer, as_exporting, functions_carry_marks
from mmdeploy_ext.lint.record import Recorder
from mmdeploy_ext.lint.report import Report, make_report
from mmdeploy_ext.lint.rules import EXPORTERS, check_exporters
from mmdeploy_ext.lint.state import held_tensors, watch_attributes
from mmdeploy_ext.lint.trial import Trial, try_export
from mmdeploy_ext.lint.watches import LARGEST_EXACT, WATCHES, largest_finite, step_text

TRAINED_LAYERS = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
"""Base classes of the layers of torch that a warning of training mode is about: normalisation by statistics,
and dropout."""


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

    The module runs on copies, observed on the inputs and, if `dynamic`, on `other_inputs`, and further times
    where an input seems to reach no output; it stays as it was. One that cannot be copied runs itself.

    Args:
        module: any module that torch can run.
        example_inputs: tuple of its positional arguments; tensors may be nested in lists, tuples and dicts.
        other_inputs: arguments of the same structure that the graph will meet later, of other sizes
            where sizes may differ. With them, only sizes that really differ count as dynamic; None: all do.
        input_names: names of the arguments; by default those of `forward`, and 'input_N' for argument N of
            `*args`, counted from 0.
        dynamic: sizes may differ from the example's; False leaves out what depends on sizes, and an input
            that gives its sizes alone is an unused one.
        exporters: 'torchscript', 'dynamo' or both; a pitfall that all of these handle is a note or a warning,
            see `rules.Rule.otherwise`.
        opset: opset of the trial exports, see `trial.try_export`; None: the default of each exporter.
        try_exports: also export with each exporter; its errors are in the report with their lines.
        name: name of the module, in the report; '' for that of its class.

    Returns:
        The report, whose `findings` have the worst first; there are none if nothing was noticed.

    Raises:
        UsageError: inputs that are neither a tuple nor a list, or that forward does not take; example inputs
            that hold no tensor; or an unknown exporter.
    """
    check_exporters(exporters)
    for argument, inputs in (('example_inputs', example_inputs), ('other_inputs', other_inputs)):
        if inputs is not None and not isinstance(inputs, list | tuple):
            raise UsageError(
                f'lint: {argument} is a {type(inputs).__name__}; expected a tuple of the arguments of '
                f'forward, for one argument (x,)'
            )
    if not list(tensors_in(example_inputs)):
        raise UsageError('lint: example_inputs hold no tensor; expected the arguments of forward')
    names = _tensor_names(module, example_inputs, input_names)
    attributes = held_tensors(module)
    observer, outputs = _observe(module, example_inputs)
    recorder = observer.recorder
    if not dynamic:
        fixed = frozenset(recorder.sizes)
    elif other_inputs is None:
        fixed = frozenset()
    else:
        fixed = recorder.fixed_sizes(_observe(module, other_inputs)[0].recorder)
    _add_inputs(observer, outputs, attributes, module, example_inputs)
    _add_outputs(recorder, outputs)
    trained = [part for part in module.modules() if part.training and isinstance(part, TRAINED_LAYERS)]
    if any(getattr(part, 'p', 1) > 0 for part in trained):  # dropout with p = 0 does nothing
        recorder.add('training-mode', 'the module is in training mode', None)
    trials: list[Trial] = []
    if try_exports:
        ends_process = {event.rule for event in recorder.events} & {'tensor-data', 'parameter-data'}
        for exporter in exporters:
            trial = try_export(module, example_inputs, exporter, opset, bool(ends_process))
            trials.append(trial)
            recorder.events.extend(trial.events)
    events = [event for event in recorder.events if event.origins is None or not event.origins <= fixed]
    if fixed != frozenset(recorder.sizes):  # an input that gives its sizes alone is used where sizes differ
        events = [event for event in events if not event.detail.endswith('for its sizes alone')]
    return make_report(name or type(module).__name__, events, exporters, trials, names)


def _tensor_names(
    module: torch.nn.Module, example_inputs: Sequence[Any], input_names: Sequence[str] | None
) -> list[str]:
    """Return a name per tensor of the inputs."""
    if input_names is None:
        parameters = list(inspect.signature(module.forward).parameters.values())
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        input_names = [parameter.name for parameter in parameters if parameter.kind in positional]
    names = []
    for index, value in enumerate(example_inputs):
        name = input_names[index] if index < len(input_names) else f'input_{index}'
        count = len(list(tensors_in(value)))
        names += [name] if isinstance(value, torch.Tensor) else [f'{name}[{item}]' for item in range(count)]
    return names


def _observe(module: torch.nn.Module, inputs: Sequence[Any]) -> tuple[Observer, Any]:
    """Run a copy of the module on copies of the inputs, watched, as if it was exported.

    Code for exports (`if torch.onnx.is_in_onnx_export()`) may need sizes that are tensors, and fail; then the
    module is watched as it runs without an export. A UsageError means that it does not run on these inputs
    without the observer either.

    Returns:
        The observer after the run, and the module's outputs.
    """
    try:
        with as_exporting():
            return _observe_once(module, inputs)
    except Exception:
        try:
            return _observe_once(module, inputs)
        except Exception:
            try:
                _run(module, copies(list(inputs)))
            except Exception as error:
                shapes = ', '.join(
                    f'{str(tensor.dtype)[6:]} {tuple(tensor.shape)}' for tensor in tensors_in(inputs)
                )
                raise UsageError(
                    f'lint: {type(module).__name__} does not run on these inputs ({shapes}): '
                    f'{type(error).__name__}: {one_line(error)}; give it inputs that its forward takes'
                ) from error
            raise


def _observe_once(module: torch.nn.Module, inputs: Sequence[Any]) -> tuple[Observer, Any]:
    observed, args = copy_of(module), copies(list(inputs))
    observer = Observer(list(tensors_in(args)), observed, WATCHES)
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        watch_attributes(observed, observer.recorder),
        functions_carry_marks(observer),
        observer,
    ):
        warnings.simplefilter('ignore')  # of the model's own code
        outputs = observed(*args)
    return observer, outputs


def _run(module: torch.nn.Module, args: list[Any]) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return copy_of(module)(*args)


def _add_inputs(
    observer: Observer,
    outputs: Any,
    attributes: Mapping[int, str],
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
) -> None:
    """Note inputs that do not reach the outputs through tensors, and times that are float32 already.

    `attributes` are id -> name of the tensors that the module holds.
    """
    # bit i of `reached` is set if the outputs depend on input i
    recorder, reached = observer.recorder, observer.marks.of_all(outputs).inputs
    for index, tensor in enumerate(tensors_in(example_inputs)):
        if tensor.dtype == torch.float32 and (largest := largest_finite(tensor)) >= LARGEST_EXACT:
            detail = f'input {index} holds {largest:.10g} in float32: steps of {step_text(largest)}'
            recorder.add('absolute-time', detail, None)
        if reached >> index & 1:
            continue
        if id(tensor) in attributes:
            detail = f'input {index} is read from attribute {attributes[id(tensor)]!r}'
            recorder.add('input-by-attribute', detail, None)
        elif _changes_outputs(module, example_inputs, index):
            recorder.add('frozen-input', f'input {index} changes the outputs, but not through tensors', None)
        else:
            use = 'counts for its sizes alone' if index in observer.sized else 'reaches no output'
            recorder.add('unused-input', f'input {index} {use}', None)


def _changes_outputs(module: torch.nn.Module, example_inputs: Sequence[Any], index: int) -> bool:
    """Return whether the outputs change with an input."""
    expected = list(leaves(_run(module, copies(list(example_inputs)))))
    args = copies(list(example_inputs))
    tensor = list(tensors_in(args))[index]
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.is_floating_point():
        tensor.add_(1 + tensor.abs() / 64)  # 1 alone is lost in a time stamp of float32
    else:
        tensor.add_(torch.ones_like(tensor))
    try:
        changed = list(leaves(_run(module, args)))
    except Exception:  # its values decide whether the module runs at all
        return True
    return len(expected) != len(changed) or not all(map(are_equal, expected, changed))


def are_equal(expected: Any, value: Any) -> bool:
    """Return whether an output equals the expected one; arrays and tensors do if all their elements do.

    A NaN equals a NaN in the same place. An array, a tensor and a number never equal one another, nor do
    tensors of different shapes; data types are not compared.
    """
    arrays = (torch.Tensor, np.ndarray)
    if isinstance(expected, arrays) or isinstance(value, arrays):
        if type(expected) is not type(value) or expected.shape != value.shape:
            return False
        return bool(((expected == value) | ((expected != expected) & (value != value))).all())
    return bool(expected == value or (expected != expected and value != value))


def _add_outputs(recorder: Recorder, outputs: Any) -> None:
    """Note dicts, nested lists, numbers and strings among the outputs."""
    flat = list(outputs.values()) if isinstance(outputs, dict) else outputs
    flat = flat if isinstance(flat, list | tuple) else [flat]
    dicts = [outputs] if isinstance(outputs, dict) else [item for item in flat if isinstance(item, dict)]
    if dicts:
        keys = ', '.join(str(key) for output in dicts for key in output)
        recorder.add('dict-output', f'keys {keys}', None)
    if any(isinstance(item, list | tuple) for item in flat):
        recorder.add('nested-output', 'lists or tuples among the outputs', None)
    for leaf in leaves(outputs):
        if isinstance(leaf, str):
            recorder.add('text-output', f'{leaf!r} among the outputs', None)
        elif isinstance(leaf, int | float | np.ndarray):
            text = 'numpy arrays' if isinstance(leaf, np.ndarray) else repr(leaf)
            recorder.add('number-output', f'{text} among the outputs', None)
