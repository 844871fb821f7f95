"""The proof of any PyTorch module and any ONNX file."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.arrays import load_arrays, to_array
from mmdeploy_ext.base.cli import suppress_output, takes, tracked
from mmdeploy_ext.base.errors import ExportError, Mm2OnnxError, UsageError, one_line, shape_text
from mmdeploy_ext.base.files import sha256_file, sha256_onnx
from mmdeploy_ext.base.source_code import model_classes, versions
from mmdeploy_ext.base.taps import load_module
from mmdeploy_ext.exporting.export import CodeWarning, recorded_warnings
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.graphs.io.index import count_nodes, opsets_of
from mmdeploy_ext.graphs.passes.rename import rename_tensors
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.graphs.signature import differences, is_same_structure
from mmdeploy_ext.proving.difference import Compared, Search, locate
from mmdeploy_ext.proving.explain import draws_of
from mmdeploy_ext.proving.file_checks import check_not_random, check_valid, unreached_inputs
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.not_shown import add_code
from mmdeploy_ext.proving.parts.part import key_text
from mmdeploy_ext.proving.subject import ModuleRequest, Sample, Step, Subject
from mmdeploy_ext.spec.comparison import compare_named, same_bits
from mmdeploy_ext.spec.matching import in_order_of, is_tied, with_choices_of
from mmdeploy_ext.spec.results import Case, Check, GraphResult
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from mmdeploy_ext.spec.verdict import Verdict, check_finding, graph_finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


# Calls of a module: arguments and results as named tensors of a file.


# Modules and samples named on the command line: `FILE.py:function`, and arrays in .npz files.


def load_function(target: str) -> Callable[..., Any]:
    file, _, name = target.rpartition(':')
    if not file or not name:
        raise UsageError(f'{target}: expected FILE.py:function')
    return getattr(load_module(file, (name,)), name)


def call_function(target: str) -> Any:
    """Return the result of `FILE.py:function`, a generator's as a list; UsageError: it raises."""
    function = load_function(target)
    try:
        result = function()
        return list(result) if inspect.isgenerator(result) else result
    except (Exception, SystemExit) as error:
        raise UsageError(f'{target}: raises {type(error).__name__}: {one_line(error)}') from error


def make_module(target: str) -> Callable[..., Any]:
    """Return the module that `FILE.py:function` makes; UsageError: it makes none."""
    module = call_function(target)
    if not callable(module):
        kind = type(module).__name__
        raise UsageError(f'{target}: returns a {kind}; expected an nn.Module or a function of tensors')
    return module


def make_samples(target: str) -> list[Any]:
    """Return the samples (`calls.read_call`) of `FILE.py:function`."""
    samples = call_function(target)
    if not isinstance(samples, Iterable):
        raise UsageError(f'--samples {target}: got {samples!r}, expected an iterable of samples')
    return list(samples)


def read_samples(files: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Return a sample, name -> array, per .npz file; UsageError: unreadable or empty."""
    samples = []
    for file in files:
        sample = load_arrays(file)
        if '' in sample:
            raise UsageError(f'{file}: is a single array; expected a .npz file with one array per argument')
        if not sample:
            raise UsageError(f'{file}: is empty; expected one array per argument of the module')
        samples.append(sample)
    return samples


RESULT = 'result'
"""Name of a single returned tensor."""


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """An input or output of an ONNX file.

    `axes`: int, name of a dynamic axis, or ''; None if the file states no shape.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...] | None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto, path: str) -> FileTensor:
        """Read a tensor; UsageError for sequences, maps, optionals and texts."""
        tensor_type = value.type.tensor_type
        if not value.type.HasField('tensor_type') or not tensor_type.elem_type:
            raise UsageError(
                f'{path}: {value.name!r} is not a tensor; expected inputs and outputs of tensors'
            )
        if tensor_type.elem_type == TensorProto.STRING:
            raise UsageError(
                f'{path}: {value.name!r} is a tensor of strings; expected inputs and outputs of numbers'
            )
        axes = None
        if tensor_type.HasField('shape'):
            axes = tuple(
                size.dim_value if size.HasField('dim_value') else size.dim_param
                for size in tensor_type.shape.dim
            )
        return cls(value.name, helper.tensor_dtype_to_np_dtype(tensor_type.elem_type).name, axes)

    @property
    def text(self) -> str:
        axes = 'of any shape' if self.axes is None else 'x'.join(str(axis or '?') for axis in self.axes)
        return f'{self.name} ({self.dtype} {axes or "scalar"})'


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """The arguments of one call.

    Attributes:
        title: for messages and cases.
        values: all leaves of the arguments in order.
        names: name of each leaf; '' for other types than tensors.
        tree: how the leaves are nested in (args, kwargs).
    """

    title: str
    values: tuple[Any, ...]
    names: tuple[str, ...]
    tree: pytree.TreeSpec

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in zip(self.names, self.values, strict=True) if name}

    def replace(self, title: str, tensors: Mapping[str, torch.Tensor]) -> ModuleCall:
        """Return the call with another title and new tensors by name."""
        values = tuple(
            tensors.get(name, value) if name else value
            for name, value in zip(self.names, self.values, strict=True)
        )
        return dataclasses.replace(self, title=title, values=values)

    def run(self, module: Callable[..., Any]) -> dict[str, np.ndarray]:
        values = [value.clone() if isinstance(value, torch.Tensor) else value for value in self.values]
        args, kwargs = pytree.tree_unflatten(values, self.tree)
        with torch.no_grad():
            return {name: to_array(tensor) for name, tensor in named_results(module(*args, **kwargs)).items()}


def forward_of(module: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` of a PyTorch module, or a function itself."""
    return module.forward if isinstance(module, torch.nn.Module) else module


def module_title(module: Callable[..., Any]) -> str:
    """Return the name of a class or function."""
    return type(module).__name__ if isinstance(module, torch.nn.Module) else getattr(module, '__name__', 'it')


def signature_of(module: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(forward_of(module))
    except ValueError:
        return inspect.signature(lambda *arguments: None)


def read_call(
    module: Callable[..., Any], sample: Any, title: str, file_inputs: Sequence[str] = ()
) -> ModuleCall:
    """Return the call of a sample."""
    signature = signature_of(module)
    args, kwargs = _arguments(signature, module, sample, title, file_inputs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f'{title}: {module_title(module)}{signature} cannot be called with it: {error}'
        ) from error
    names: list[str] = []
    for parameter, value in bound.arguments.items():
        kind = signature.parameters[parameter].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            parts = [entry for name, inner in value.items() for entry in _leaves(name, inner)]
        else:
            parts = _leaves(parameter, value)
        names += [name if isinstance(leaf, torch.Tensor) else '' for name, leaf in parts]
    _refuse_equal(names, f'{title}: arguments')
    values, tree = pytree.tree_flatten(_with_tensors((bound.args, bound.kwargs)))
    call = ModuleCall(title, tuple(values), tuple(names), tree)
    if not call.tensors:
        raise UsageError(
            f'{title}: holds no tensor; expected tensors or arrays for {module_title(module)}{signature}'
        )
    return call


def _arguments(
    signature: inspect.Signature,
    module: Callable[..., Any],
    sample: Any,
    title: str,
    file_inputs: Sequence[str],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, dict):
        takes_any = any(entry.kind is entry.VAR_KEYWORD for entry in signature.parameters.values())
        unknown = [name for name in sample if name not in signature.parameters and not takes_any]
        if not unknown:
            return (), _with_tensors(dict(sample))
        if set(sample) == set(file_inputs):
            return tuple(_with_tensors([sample[name] for name in file_inputs])), {}
        raise UsageError(
            f'{title}: {unknown[0]!r} is not an argument of {module_title(module)}{signature}; name '
            f"tensors as the module's arguments, or all as the file's inputs: {', '.join(file_inputs)}"
        )
    args = tuple(sample) if isinstance(sample, list | tuple) else (sample,)
    return tuple(_with_tensors(list(args))), {}


def _with_tensors(arguments: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf, arguments
    )


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    leaves, _ = pytree.tree_flatten_with_path(_with_tensors(value))
    return [('.'.join([name, *map(key_text, path)]).strip('.'), leaf) for path, leaf in leaves]


def named_results(result: Any) -> dict[str, torch.Tensor]:
    """Return name -> tensor of a module's outputs: `RESULT`, or index or key, such as '0' or 'boxes.0'."""
    tensors = [(name or RESULT, leaf) for name, leaf in _leaves('', result) if isinstance(leaf, torch.Tensor)]
    _refuse_equal([name for name, _ in tensors], 'of the results')
    return dict(tensors)


def _refuse_equal(names: Sequence[str], place: str) -> None:
    counts = collections.Counter(filter(None, names))
    if equal := [name for name, count in counts.items() if count > 1]:
        raise UsageError(
            f'{place} {counts[equal[0]]} tensors have the name {equal[0]!r} (keys and indices joined with '
            'dots); wrap the module so that its tensors have different names'
        )


def pair_names(
    file_names: Sequence[str], module_names: Sequence[str], place: str, module: str
) -> dict[str, str]:
    """Return name in the file -> name in the module: by name if all match, else by position."""
    if set(file_names) <= set(module_names):
        return {name: name for name in file_names}
    if len(file_names) == len(module_names):
        return dict(zip(file_names, module_names, strict=True))
    raise UsageError(
        f'{place} are {", ".join(file_names)}; {module} are {", ".join(module_names)}: neither the number '
        'nor the names agree; wrap the module so that it has the tensors of the file'
    )


def as_fed(array: np.ndarray, tensor: FileTensor, title: str) -> np.ndarray:
    """Return an array in the file's dtype: rounded floats, other widths of integers."""
    dtype = np.dtype(tensor.dtype)
    if array.dtype == dtype:
        return array
    fed = array.astype(dtype)
    if array.dtype.kind != dtype.kind or (dtype.kind in 'iu' and not np.array_equal(fed, array)):
        raise UsageError(
            f'{title}: the tensor for {tensor.text} is {array.dtype}; convert it to the dtype of the file'
        )
    return fed


class FlatModule(torch.nn.Module):
    """A module with a file's inputs and outputs in order; it may write into them."""

    def __init__(
        self,
        module: Callable[..., Any],
        call: ModuleCall,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.module = module

        def run(module: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            given = dict(zip(inputs.values(), tensors, strict=True))
            args, kwargs = pytree.tree_unflatten(list(call.replace('', given).values), call.tree)
            results = named_results(module(*args, **kwargs))
            return tuple(results[name] for name in outputs.values())

        self._run = run  # a function: torch copies modules to export them, and warns of copied trees

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._run(self.module, tensors)


# `prove_module`: is an ONNX file the same function as a PyTorch module?


# Generated inputs: samples at other sizes of dynamic axes, and other values in their range.


STEP = 32


def dynamic_axes(
    inputs: Mapping[FileTensor, str], call: ModuleCall
) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
    """Return axis name -> its (tensor, axis) pairs, and axis name -> size."""
    places: dict[str, list[tuple[str, int]]] = {}
    sizes: dict[str, int] = {}
    for tensor, name in inputs.items():
        for axis, size in enumerate(tensor.axes or ()):
            if isinstance(size, str) and axis < call.tensors[name].ndim:  # a sample of fewer axes has failed
                letter = size or f'{tensor.name}[{axis}]'
                places.setdefault(letter, []).append((name, axis))
                sizes[letter] = call.tensors[name].shape[axis]
    return places, sizes


class Draws:
    """Seeded values of a call's tensors within the range that the samples have; bools are True or False."""

    def __init__(self, calls: Sequence[ModuleCall], seed: int) -> None:
        self.calls, self.first, self.rng = calls, calls[0], np.random.default_rng(seed)

    def range_of(self, name: str) -> tuple[float, float]:
        if self.first.tensors[name].dtype == torch.bool:
            return 0, 1
        values = np.concatenate([to_array(call.tensors[name]).real.ravel() for call in self.calls])
        values = values[np.isfinite(values)]
        return (values.min().item(), values.max().item()) if values.size else (0.0, 1.0)

    def uniform(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        low, high = self.range_of(name)
        tensor = self.first.tensors[name]
        shape = tuple(tensor.shape if shape is None else shape)
        if tensor.is_floating_point():
            return self._as_tensor(name, self.rng.uniform(low, high, shape))
        return self._as_tensor(name, self.rng.integers(int(low), int(high), shape, endpoint=True))

    def extremes(self, name: str) -> torch.Tensor:
        low, high = self.range_of(name)
        shape = tuple(self.first.tensors[name].shape)
        return self._as_tensor(name, np.where(self.rng.random(shape) < 0.5, low, high))

    def _as_tensor(self, name: str, values: np.ndarray) -> torch.Tensor:
        tensor = self.first.tensors[name]
        return torch.from_numpy(values.astype(to_array(tensor).dtype)).to(tensor.dtype)


def resized(
    calls: Sequence[ModuleCall], title: str, places: Sequence[tuple[str, int]], size: int, seed: int
) -> ModuleCall:
    """Return the first call with another size of axes: further entries are other samples', then drawn."""
    draws, first = Draws(calls, seed), calls[0]
    chosen = [first]
    for call in calls[1:]:
        fits = all(_fits(call.tensors[name], first.tensors[name], axis) for name, axis in places)
        if fits and not any(_is_same(call, other, places) for other in chosen):
            chosen.append(call)
    tensors: dict[str, torch.Tensor] = {}
    for name, axis in places:
        parts = [tensors[name]] if name in tensors else [call.tensors[name] for call in chosen]
        shape = list(parts[0].shape)
        shape[axis] = max(size - sum(part.shape[axis] for part in parts), 0)
        parts.append(draws.uniform(name, shape))
        tensors[name] = torch.cat(parts, axis).narrow(axis, 0, size)
    return first.replace(title, tensors)


def _fits(tensor: torch.Tensor, expected: torch.Tensor, axis: int) -> bool:
    sizes = zip(tensor.shape, expected.shape, strict=False)
    return tensor.ndim == expected.ndim and all(a == b for i, (a, b) in enumerate(sizes) if i != axis)


def _is_same(call: ModuleCall, other: ModuleCall, places: Sequence[tuple[str, int]]) -> bool:
    return all(torch.equal(call.tensors[name], other.tensors[name]) for name, _ in places)


def other_sizes(size: int, axis: int) -> tuple[int, ...]:
    """Return sizes to try: 1 and 2 more for the batch (axis 0); else 1 more, half."""
    if axis == 0:
        return size + 1, size + 2
    return (size + 1, size // 2) if size > 1 else (size + 1,)


def other_values(calls: Sequence[ModuleCall], names: Sequence[str], seed: int) -> Iterator[ModuleCall]:
    """Yield calls like the first one with generated values of the tensors `names`."""
    first, draws = calls[0], Draws(calls, seed)
    for name in names:
        if len(names) > 1:
            yield first.replace(f'{name} alone changed', {name: draws.uniform(name)})
    yield first.replace('random numbers', {name: draws.uniform(name) for name in names})
    yield first.replace('smallest and largest values', {name: draws.extremes(name) for name in names})
    floats = [name for name in names if first.tensors[name].is_floating_point()]
    if floats:
        yield first.replace('zeros', {name: torch.zeros_like(first.tensors[name]) for name in floats})


def calls_with_another(name: str, calls: Sequence[ModuleCall], seed: int) -> Iterator[ModuleCall]:
    """Yield the first call with other values of one tensor: do the results depend on it?"""
    first, tensor = calls[0], calls[0].tensors[name]
    following = ~tensor if tensor.dtype == torch.bool else tensor + 1
    replacements = [call.tensors[name] for call in (*calls[1:], *other_values(calls, [name], seed))]
    for replacement in (*replacements, following):
        is_equal = replacement.shape == tensor.shape and torch.equal(replacement, tensor)
        if not tensor.numel() or not is_equal:
            yield first.replace(f'{name} alone changed', {name: replacement})


def disturbed(calls: Sequence[ModuleCall], call: ModuleCall, seed: int) -> ModuleCall:
    """Return a call with floats off by rounding; zeros by the rounding of the samples' usual values."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in call.tensors.items():
        if tensor.is_floating_point():
            values = torch.cat([one.tensors[name].flatten() for one in calls]).abs()
            values = values[(values > 0) & values.isfinite()]
            usual = values.median() if len(values) else values.new_ones(())
            noise = 2 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype) - 1
            tensors[name] = tensor + torch.finfo(tensor.dtype).eps * tensor.abs().clamp(min=usual) * noise
    return call.replace(call.title, tensors)


Arrays = dict[str, np.ndarray]
GENERATED = 'generated'
"""Mode of inputs beside the samples."""
WITH_STATE = 'teacher-forced', 'free-running', 'free-running after a reset'
"""Modes of samples that are frames."""
MOST_UNDECIDED = 0.01
"""Largest share of an output's integers or booleans (or one) that rounding may decide, per sample."""


@takes(ModuleRequest)
def prove_module(request: ModuleRequest) -> Verdict:
    """Prove that an ONNX file and a PyTorch module compute the same, as `mm2onnx prove-module`.

    `module` is an `nn.Module` in evaluation mode, or a function of tensors, on the CPU; it may nest results.
    `inputs` are samples on the CPU: a tensor, a tuple of arguments, or a dict by name; with a `state` the
    frames of one sequence, of which the first has the initial state; a single frame does not test the state.
    Differences of floats are allowed up to 1e-6, and up to 3 times the distance of PyTorch from float64, too;
    integers and booleans have to be equal. `fresh` and `generate` are on by default.

    Returns the verdict. UsageError: samples, names, tolerance or seed do not fit, or the module raises,
    returns no tensor, or is in training mode. ModelFileError: the file is missing, damaged, or ONNX Runtime
    cannot load it.
    """
    proof = ModuleProof(
        request.module, request.path, request.inputs, request.rtol, request.state, request.rows, request.seed
    )
    proof.compare_graph(request.fresh)
    proof.check_structure()
    if not request.generate:
        proof.not_compared('generated inputs: not requested')
    return proof.conclude(request.generate)


class ModuleProof(Subject):
    """One proof of a module and a file; `prove_module` calls its methods and describes the arguments.

    Attributes:
        file_inputs: inputs of the file without a default, by name.
        calls: the samples.
        inputs: input of the file -> the module's tensor.
        outputs: output of the file -> the module's result.
        ran: sample, module's step and file's of each input that the verdict has.
        special: outputs with NaN or infinities on samples.
        varied: outputs that are not one number in a row on some sample.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        path: str | Path,
        inputs: Iterable[Any],
        rtol: float = DEFAULT_RTOL,
        state: Mapping[str, str] | None = None,
        rows: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        path, samples, state, rows = str(path), list(inputs), dict(state or {}), tuple(rows)
        self.module, self.path, self.rtol, self.seed = module, path, rtol, seed
        self.state, self.rows = state, rows
        if not 0 <= rtol < 1:
            raise UsageError(f'tolerance {rtol:g}: expected 0 or more and below 1, such as {DEFAULT_RTOL:g}')
        if seed < 0:
            raise UsageError(f'seed {seed}: expected 0 or more')
        _check_evaluating(module)
        self.model = load(path)
        self.runner = Runner(self.model, optimization='all')
        defaults = {tensor.name for tensor in self.model.graph.initializer}
        self.file_inputs = {
            value.name: FileTensor.of(value, path)
            for value in self.model.graph.input
            if value.name not in defaults
        }
        file_outputs = [FileTensor.of(value, path).name for value in self.model.graph.output]
        if not samples:
            raise UsageError(f'{path}: no sample to compare on; pass at least one')
        self.calls = [
            read_call(module, sample, f'sample {index}', list(self.file_inputs))
            for index, sample in enumerate(samples)
        ]
        first = self.calls[0]
        for call in self.calls[1:]:
            dtypes, expected = ({n: t.dtype for n, t in side.tensors.items()} for side in (call, first))
            if dtypes != expected:
                raise UsageError(
                    f'{call.title}: has {dtypes}; expected the same tensors as in sample 0: {expected}'
                )
        results = self._reference(first)
        self.inputs = pair_names(
            list(self.file_inputs),
            list(self.calls[0].tensors),
            f'the inputs of {path}',
            f'the arguments of {module_title(module)}',
        )
        self.outputs = pair_names(
            file_outputs,
            list(results),
            f'the outputs of {path}',
            f'the results of {module_title(module)}',
        )
        self._check_names()
        self._check_sizes()
        self.ran: list[tuple[Sample, Step, Step | Exception]] = []
        self.first_failed: tuple[ModuleCall, Arrays] | None = None
        self.computed: dict[str, Step] = {}
        self.generated: list[str] = []
        self.undecided: list[str] = []
        self.special: set[str] = set()
        self.varied: set[str] = set()
        self.verdict = Verdict(self._subject())
        for name in results:
            if name not in self.outputs.values():
                self.not_compared(f'result {name} of the module: is no output of the file')

    def not_compared(self, what: str) -> None:
        if (note := f'not compared: {what}') not in self.verdict.notes:  # the first sample runs twice
            self.verdict.notes.append(note)

    def _subject(self) -> dict[str, Any]:
        try:
            source = inspect.getsourcefile(inspect.unwrap(forward_of(self.module)))
        except TypeError:  # a built-in function
            source = None
        return dict(
            file=self.path,
            file_sha256=sha256_onnx(self.path),
            module=module_title(self.module),
            source=source or '',
            source_sha256=sha256_file(source) if source and os.path.isfile(source) else '',  # a notebook
            inputs=self.inputs,
            outputs=self.outputs,
            samples=len(self.calls),
            rtol=self.rtol,
            opset=opsets_of(self.model).get('', 0),
            producer=f'{self.model.producer_name} {self.model.producer_version}'.strip(),
            proven_with=versions(),
            python=platform.python_version(),
        )

    def _check_sizes(self) -> None:
        for call in self.calls:
            for name, argument in self.inputs.items():
                axes, shape = self.file_inputs[name].axes, tuple(call.tensors[argument].shape)
                if axes is None or len(axes) != len(shape):
                    continue
                sizes = zip(axes, shape, strict=True)
                if any(isinstance(axis, int) and axis != size for axis, size in sizes):
                    raise UsageError(
                        f'{call.title}: {argument} is {shape_text(shape)}, {self.path} expects {name} '
                        f'{shape_text(axes)}; pass samples of this size, or export with dynamic axes'
                    )

    def _check_names(self) -> None:
        for name in (*self.rows, *self.state.values()):
            if name not in self.outputs:
                raise UsageError(
                    f'{name!r}: {self.path} has no such output; it has {", ".join(self.outputs)}'
                )
        for name in self.state:
            if name not in self.inputs:
                raise UsageError(f'{name!r}: {self.path} has no such input; it has {", ".join(self.inputs)}')

    def check_structure(self) -> None:
        model = self.model
        checks = [check_valid(model), check_not_random(model)]
        outputs = [value.name for value in model.graph.output]
        for name in unreached_inputs(model, self.inputs, outputs):
            checks.append(self._unused(self.inputs[name], f'input {name} reaches an output'))
        for name in self.calls[0].tensors:
            if name not in self.inputs.values():
                checks.append(self._unused(name, f'argument {name} is an input of the file'))
        self.verdict.findings += map(check_finding, checks)

    def _unused(self, name: str, title: str) -> Check:
        results, varied = self.calls[0].run(self.module), False
        for call in calls_with_another(name, self.calls, self.seed):
            with contextlib.suppress(Exception):
                if not same_bits(call.run(self.module), results):
                    return Check(title, False, f'frozen: the results of the module depend on {name}')
                varied = True
        if not varied:
            return Check(title, False, f'possibly unused: the module fails with another {name}')
        self.verdict.notes.append(f'argument {name}: neither the module nor the file uses it')
        return Check(title, True)

    def compare_graph(self, fresh: bool) -> None:
        """Compare the graph with a fresh export by the same exporter; other constants alone are a failure."""
        warnings: list[CodeWarning] = []
        self.verdict.findings.append(graph_finding(self._graph_result(fresh, warnings)))
        is_model = isinstance(self.module, torch.nn.Module)
        add_code(self.verdict, model_classes(self.module) if is_model else (), warnings)

    def _graph_result(self, fresh: bool, warnings: list[CodeWarning]) -> GraphResult:
        result = GraphResult('', count_nodes(self.model), equal=False)
        if not fresh:
            return dataclasses.replace(result, left_out='not compared: not requested')
        if self.model.producer_name != 'pytorch':
            writer = self.model.producer_name or 'an unknown program'
            reason = f'not compared: written by {writer}; only files of torch.onnx.export are compared'
            return dataclasses.replace(result, left_out=reason)
        model = self._model_with_names()
        is_installed = self.model.producer_version == torch.__version__.partition('+')[0]
        for export_again in self._exports():
            try:
                with recorded_warnings(warnings):
                    export = export_again()
                    found = tuple(differences(model, export))
            except Mm2OnnxError as error:
                reason = result.left_out or f'not compared: {one_line(error)[:300]}'
                result = dataclasses.replace(result, left_out=reason)
                continue
            if not found:
                return dataclasses.replace(result, equal=True, left_out='', differences=())
            if is_installed or is_same_structure(model, export):
                fewest = min((result.differences or found, found), key=len)
                result = dataclasses.replace(result, left_out='', differences=fewest)
            elif not result.differences:
                reason = result.left_out or self._another_graph(found[0].text)
                result = dataclasses.replace(result, left_out=reason)
        if result.differences and is_installed:
            self.verdict.notes.append(
                f'a fresh export with {self._options()} differs; if another program changed the file, or it '
                'was exported with other options, compare only the outputs: --no-fresh-export'
            )
        return result

    def _model_with_names(self) -> onnx.ModelProto:
        """Return the model; names of inputs and outputs are no numbers, which `torch.onnx.export` refuses."""
        new = {name: _name_of_end(name) for name in (*self.inputs, *self.outputs)}
        if all(name == old for old, name in new.items()):
            return self.model
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        rename_tensors(model.graph, lambda name: new.get(name, name))
        return model

    def _options(self) -> str:
        return f'dynamo={self._is_by_dynamo()}, opset_version={opsets_of(self.model).get("", 0)}'

    def _another_graph(self, difference: str) -> str:
        options = f'{torch.__version__} exports another graph with {self._options()}'
        writer = f'written by PyTorch {self.model.producer_version}; {options}'
        return f'not compared: {writer} ({difference})'

    def _exports(self) -> Iterator[Callable[[], onnx.ModelProto]]:
        """Yield exports as `torch.onnx.export` and mm2onnx do them; constants may be folded or not."""
        yield functools.partial(self._export, plain=True)
        if self._is_by_dynamo():
            yield functools.partial(self._export, plain=False)
        else:
            yield functools.partial(self._export_by_torch, folded=True)
            yield functools.partial(self._export_by_torch, folded=False)

    def _is_by_dynamo(self) -> bool:
        nodes = self.model.graph.node[:1]
        return any(entry.key.startswith('pkg.torch') for node in nodes for entry in node.metadata_props)

    def _export(self, plain: bool) -> onnx.ModelProto:
        from mmdeploy_ext.exporting.export import export_module

        is_dynamo = self._is_by_dynamo()
        dynamic, fed = self._dynamic_axes(), set(map(_name_of_end, self.inputs))
        return export_module(
            *self._flat(),
            exporter='dynamo' if is_dynamo else 'torchscript',
            opset=opsets_of(self.model).get('', 0),
            input_names=list(map(_name_of_end, self.inputs)),
            output_names=list(map(_name_of_end, self.outputs)),
            dynamic={name: dynamic[name] for name in dynamic if not is_dynamo or name in fed},
            plain=plain,
        )

    def _export_by_torch(self, folded: bool) -> onnx.ModelProto:
        from mmdeploy_ext.exporting.export import tracer_warnings

        module, args = self._flat()
        stream = io.BytesIO()
        try:
            with suppress_output(), tracer_warnings(), torch.no_grad():
                torch.onnx.export(
                    module,
                    tuple(args),
                    stream,
                    dynamo=False,
                    opset_version=opsets_of(self.model).get('', 0),
                    input_names=list(map(_name_of_end, self.inputs)),
                    output_names=list(map(_name_of_end, self.outputs)),
                    dynamic_axes=self._dynamic_axes(),
                    do_constant_folding=folded,
                )
        except Exception as error:
            raise ExportError(f'torch.onnx.export: {one_line(error)}') from error
        return onnx.load_from_string(stream.getvalue())

    def _flat(self) -> tuple[FlatModule, list[torch.Tensor]]:
        call = self.calls[0]
        module = FlatModule(self.module, call, self.inputs, self.outputs).eval()
        return module, [call.tensors[name].clone() for name in self.inputs.values()]

    def _dynamic_axes(self) -> dict[str, dict[int, str]]:
        named: dict[str, dict[int, str]] = {}
        for value in (*self.model.graph.input, *self.model.graph.output):
            axes = enumerate(FileTensor.of(value, self.path).axes or ())
            if names := {axis: size for axis, size in axes if isinstance(size, str) and size}:
                named[_name_of_end(value.name)] = names
        return named

    def entries(self, mode: str) -> list[ModuleCall]:
        """Return the samples, or generated inputs that the module takes; refusals are notes."""
        if mode != GENERATED:
            if mode == self.modes[0][0]:
                self._run_samples(mode)
            return self.calls
        calls = [*self._resized(), *other_values(self.calls, list(self.inputs.values()), self.seed)]
        refusals = {call.title: self._refusal(call) for call in calls}
        for title, refusal in refusals.items():
            if refusal:
                self.not_compared(f'{title}: the module returns {refusal}')
        self.generated = [call.title for call in calls]
        return [call for call in calls if not refusals[call.title]]

    def _run_samples(self, mode: str) -> None:
        """Run the module on all samples first: what varies over them tells ties from constants."""
        state = None
        for index, call in enumerate(tracked(self.calls, len(self.calls), 'samples')):
            sample = self.sample(call, index, mode)
            step = self.want(sample, state)
            state, self.computed[sample.name] = step.state, step
            self.special |= _not_finite(step.tensors)
            self.varied |= {name for name, array in step.tensors.items() if not is_tied(array)}
        self._name_constant_inputs()

    def sample(self, entry: ModuleCall, index: int, mode: str) -> Sample:
        title = f'frame {index}, {mode}' if mode in WITH_STATE else entry.title
        shapes = ', '.join(shape_text(array.shape) for array in self.feeds(entry, None).values())
        return Sample(title, entry.replace(title, {}), shapes, alone=mode not in WITH_STATE)

    def feeds(self, call: ModuleCall, state: Arrays | None) -> Arrays:
        """Return the inputs of the file."""
        arrays = {name: to_array(call.tensors[result]) for name, result in self.inputs.items()}
        feeds = {name: as_fed(array, self.file_inputs[name], call.title) for name, array in arrays.items()}
        return feeds | (state or {})

    def continued(self, call: ModuleCall, state: Arrays | None) -> ModuleCall:
        """Return a call with the module's memory."""
        memory = (state or {}).items()
        return call.replace(
            call.title, {self.inputs[name]: torch.from_numpy(array.copy()) for name, array in memory}
        )

    def want(self, sample: Sample, state: Arrays | None) -> Step:
        if sample.name in self.computed:
            return self.computed.pop(sample.name)
        call = self.continued(sample.data, state)
        tensors = self._of_file(self._reference(call))
        for name, output in self.state.items() if sample.name.startswith('frame') else ():
            if output not in tensors:
                raise UsageError(
                    f'{sample.name}: {module_title(self.module)} does not return {self.outputs[output]}, '
                    f'which is the {name} of the next frame'
                )
        return Step(tensors, state=self._memory(tensors), probe=tensors, facts=dict(call=call))

    def got(self, sample: Sample, state: Arrays | None) -> Step:
        feeds = self.feeds(sample.data, state)
        outputs = self.runner.run(feeds)
        return Step(outputs, state=self._memory(outputs), facts=dict(feeds=feeds))

    def tensors(self, sample: Sample, state: Arrays | None, got: Step | None) -> Arrays:
        return self._of_file(self.continued(sample.data, state).run(self.module))

    def _of_file(self, results: Arrays) -> Arrays:
        return {name: results[result] for name, result in self.outputs.items() if result in results}

    def _memory(self, tensors: Arrays) -> Arrays:
        return {name: tensors[output] for name, output in self.state.items() if output in tensors}

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case | None:
        """Leave out generated inputs whose results rounding decides; keep the first call that fails."""
        failed = {row.tensor for row in case.tensors if not row.passed}
        is_compared = not isinstance(got, Exception)
        is_open = failed and is_compared and sample.name in self.generated
        if is_open and failed <= self._undecided(sample.data, want.tensors):
            self.undecided.append(sample.name)
            return None
        self.ran.append((sample, want, got))
        if failed and self.first_failed is None:
            call = want.facts['call']
            self.first_failed = call, got.facts['feeds'] if is_compared else self.feeds(call, None)
        return case

    def _name_constant_inputs(self) -> None:
        for name, argument in self.inputs.items():
            values = torch.cat([call.tensors[argument].flatten() for call in self.calls])
            if name not in self.state and len(values) and bool((values == values[0]).all()):
                self.verdict.notes.append(
                    f'input {name}: {values[0].item():g} in all samples, so no other value was tested; '
                    'pass samples with other values, or --state if it is a memory'
                )

    def _resized(self) -> Iterator[ModuleCall]:
        first = self.calls[0]
        places, sizes = dynamic_axes(
            {self.file_inputs[name]: module_name for name, module_name in self.inputs.items()}, first
        )
        for letter, axes in places.items():
            next_size = sizes[letter] + 1
            for size in other_sizes(sizes[letter], axes[0][1]):
                call = resized(self.calls, f'{letter} = {size}', axes, size, self.seed)
                if size == next_size and self._refusal(call):
                    step_size = sizes[letter] + STEP
                    call = resized(self.calls, f'{letter} = {step_size}', axes, step_size, self.seed)
                yield call

    def _refusal(self, call: ModuleCall) -> str:
        try:
            results = call.run(self.module)
        except Exception as error:
            return f'{type(error).__name__}: {one_line(error)[:200]}'
        if not results:
            return 'no tensor'
        reference = {name: results[result] for name, result in self.outputs.items() if result in results}
        odd = [name for name in _not_finite(reference) if name not in self.special]
        return f'NaN or infinity in {", ".join(odd)}' if odd else ''

    def _reference(self, call: ModuleCall) -> Arrays:
        try:
            results = call.run(self.module)
        except UsageError as error:
            raise UsageError(f'{call.title}: {error}') from error
        except Exception as error:
            reason = f'{type(error).__name__}: {one_line(error)[:300]}'
            raise UsageError(f'{call.title}: {module_title(self.module)} raises {reason}') from error
        if not results:
            raise UsageError(f'{call.title}: {module_title(self.module)} returns no tensor')
        return results

    def _other_roundings(self, call: ModuleCall, reference: Arrays) -> Iterator[Arrays]:
        """Yield the module's results on inputs off by rounding, also with other roundings inside."""

        def run(seed: int) -> Arrays:
            named = self._of_file(disturbed(self.calls, call, seed).run(self.module))
            return {
                name: array.astype(reference[name].dtype) if array.dtype.kind in 'fc' else array
                for name, array in named.items()
                if name in reference
            }

        return draws_of(self.module, run, plain=True)

    def _undecided(self, call: ModuleCall, reference: Arrays) -> set[str]:
        """Return the outputs that another rounding changes by more than the tolerance."""
        found: set[str] = set()
        for results in self._other_roundings(call, reference):
            if self.rows:
                results = in_order_of(reference, results, self.rows, self.rtol)
            same = {name for name in results if same_bits({'': reference[name]}, {'': results[name]})}
            rows = compare_named(reference, results, self.rtol)
            found |= {row.tensor for row in rows if not row.passed} - same
        return found

    def _places_undecided(self, call: ModuleCall, reference: Arrays, outputs: Arrays) -> Arrays:
        """Return, for other integers and booleans than the reference's, the places that rounding decides."""
        differing = [
            name
            for name, array in outputs.items()
            if name in reference
            and array.dtype.kind in 'biu'
            and array.shape == reference[name].shape
            and not np.array_equal(array, reference[name])
        ]
        places = {name: np.zeros(reference[name].shape, bool) for name in differing}
        for results in self._other_roundings(call, reference) if differing else ():
            for name in differing:
                if name in results and results[name].shape == reference[name].shape:
                    places[name] |= results[name] != reference[name]
        found = {name: places[name] & (outputs[name] != reference[name]) for name in differing}
        return {
            name: array
            for name, array in found.items()
            if 0 < array.sum() <= max(1, MOST_UNDECIDED * array.size)
        }

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        """Order common rows; leave out empty tensors and what ties or rounding decide."""
        reference, outputs = want.tensors, got.tensors
        if self.rows:
            outputs = in_order_of(reference, outputs, self.rows, self.rtol)
        left_out = {
            name
            for name, array in reference.items()
            if not array.size and name in outputs and same_bits({'': array}, {'': outputs[name]})
        }
        outputs, chosen = with_choices_of(reference, outputs, self.varied)
        for reason, places in (
            ('a top-k selects among equal values', chosen),
            ('rounding decides', self._places_undecided(want.facts['call'], reference, outputs)),
        ):
            for name, at in places.items():
                outputs[name] = outputs[name].copy()
                outputs[name][at] = reference[name][at]
                left_out |= {name} if at.all() else set()
                self.not_compared(f'{sample.name}: {int(at.sum())} of {at.size} entries of {name}: {reason}')
        want, got = (
            dataclasses.replace(step, tensors={n: side[n] for n in side if n not in left_out})
            for step, side in ((want, reference), (got, outputs))
        )
        return want, got, ()

    def conclude(self, generate: bool = True) -> Verdict:
        """Judge the samples and generated inputs, and locate the first difference; call it once."""
        modes = (*(WITH_STATE if self.state else ('',)), *((GENERATED,) if generate else ()))
        self.modes = [(mode,) for mode in modes]
        if self.state and len(self.calls) == 1:
            self.not_compared('the state: a single sample has no next frame; pass two or more')
        (cases, reasons, _), verdict = compare(self), self.verdict
        references = [want.tensors for _, want, got in self.ran if not isinstance(got, Exception)]
        seen = {row.tensor for case in cases for row in case.tensors if row.max_abs is not None}
        if unseen := [name for name in self.outputs if references and name not in seen]:
            verdict.add_failures([f'{", ".join(unseen)}: empty for every input, so it was not compared'])
        if len(cases) > 1 and all(same_bits(references[0], other) for other in references[1:]):
            reason = 'the module returns the same results for all inputs, so its inputs may be unused; '
            verdict.add_failures([f'{reason}pass samples that differ'])
        verdict.add_failures(reasons)
        verdict.add_outputs(cases)
        if self.undecided:
            count = f'{len(self.undecided)} of {len(self.generated)} generated inputs'
            titles = ', '.join(self.undecided)
            self.not_compared(f'{count}: rounding decides their results: {titles}')
        sizes = [size for tensor in self.file_inputs.values() for size in tensor.axes or ()]
        if generate and not any(isinstance(size, str) for size in sizes):
            verdict.notes.append('the file has no dynamic axis: it is proven at the sizes of the samples')
        if self.first_failed is not None:
            call, feeds = self.first_failed
            flat = FlatModule(self.module, call, self.inputs, self.outputs).eval()
            try:
                place = locate(Search(Compared.of(flat, self.model, feeds)), self.model)
            except Exception as error:
                place = f'could not be located: {one_line(error)[:200]}'
            if place:
                verdict.notes.append(f'first difference: {place}')
        return verdict


def _name_of_end(name: str) -> str:
    return f'tensor_{name}' if name.isdigit() else name


def _not_finite(arrays: Arrays) -> set[str]:
    return {n for n, array in arrays.items() if array.dtype.kind == 'f' and not np.isfinite(array).all()}


def _check_evaluating(module: Callable[..., Any]) -> None:
    if not callable(module):
        raise UsageError(
            f'{type(module).__name__} is not a module: expected an nn.Module or a function of tensors'
        )
    if isinstance(module, torch.nn.Module):
        training = [name or 'the module' for name, part in module.named_modules() if part.training]
        if training:
            raise UsageError(
                f'{module_title(module)}: {training[0]} is in training mode; return module.eval()'
            )
