"""Calls of a module: arguments and results as named tensors of a file."""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.arrays import load_arrays, to_array
from mmdeploy_ext.base.errors import UsageError, one_line
from mmdeploy_ext.base.taps import load_module
from mmdeploy_ext.proving.parts.part import key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx


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
