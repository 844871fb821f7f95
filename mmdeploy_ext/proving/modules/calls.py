"""Calls of a module: its arguments and results as named tensors, bound to the inputs and outputs of a file.

Arguments and results may be nested lists, tuples and dicts, as `torch.onnx.export` takes them; each tensor in
them has a name: that of the argument, with index, key or attribute inside it (`images.0`). Those of `*args`
are `args.0`, `args.1` and so on, those of `**kwargs` have their own names.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch.utils import _pytree as pytree

from mmdeploy_ext.core.arrays import to_array
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

RESULT = 'result'
"""Name of a tensor that a module returns by itself, in no tuple, list or dict."""


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """An input or output of an ONNX file.

    Attributes:
        name: name in the graph.
        dtype: numpy's name of the element type, such as 'float32'.
        axes: an int for a fixed axis, the name of a dynamic one, '' for one without a name; None: the file
            states no shape.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...] | None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto, path: str) -> FileTensor:
        """Return what a file states of one of its tensors; `path` is that of the file, for messages.

        Raises:
            UsageError: it is a sequence, a map or an optional, or holds texts.
        """
        tensor_type = value.type.tensor_type
        if not value.type.HasField('tensor_type') or not tensor_type.elem_type:
            raise UsageError(f'{path}: {value.name!r} is no tensor; expected inputs and outputs of tensors')
        if tensor_type.elem_type == TensorProto.STRING:
            raise UsageError(f'{path}: {value.name!r} holds texts; expected inputs and outputs of numbers')
        axes = None
        if tensor_type.HasField('shape'):
            axes = tuple(
                size.dim_value if size.HasField('dim_value') else size.dim_param
                for size in tensor_type.shape.dim
            )
        return cls(value.name, helper.tensor_dtype_to_np_dtype(tensor_type.elem_type).name, axes)

    @property
    def text(self) -> str:
        """Name, dtype and axes, for messages."""
        axes = 'of any shape' if self.axes is None else 'x'.join(str(axis or '?') for axis in self.axes)
        return f'{self.name} ({self.dtype} {axes or "scalar"})'


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """The arguments of one call.

    Attributes:
        title: title of the sample, frame or generated input, for messages and cases.
        values: all leaves of the arguments in order: tensors, and numbers or texts that stay as they are.
        names: name of each leaf, see above; '' for one that is no tensor.
        tree: how the leaves are nested in (args, kwargs).
    """

    title: str
    values: tuple[Any, ...]
    names: tuple[str, ...]
    tree: pytree.TreeSpec

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleCall:
        """Return a copy with the same tree: torch copies a module to export it, and warns of copied trees."""
        return dataclasses.replace(self, values=copy.deepcopy(self.values, memo))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, in the order of the arguments in the module's signature."""
        return {name: value for name, value in zip(self.names, self.values, strict=True) if name}

    def replace(self, title: str, tensors: Mapping[str, torch.Tensor]) -> ModuleCall:
        """Return the call with another title and other values of the tensors in `tensors`, by name.

        Names that the call does not have are ignored.
        """
        values = tuple(
            tensors.get(name, value) if name else value
            for name, value in zip(self.names, self.values, strict=True)
        )
        return dataclasses.replace(self, title=title, values=values)

    def run(self, module: Callable[..., Any]) -> dict[str, np.ndarray]:
        """Call a module with copies of the tensors; return its results by the names of `named_results`."""
        values = [value.clone() if isinstance(value, torch.Tensor) else value for value in self.values]
        args, kwargs = pytree.tree_unflatten(values, self.tree)
        with torch.no_grad():
            return {name: to_array(tensor) for name, tensor in named_results(module(*args, **kwargs)).items()}


def forward_of(module: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` of a PyTorch module, whose signature has its arguments, or a function itself."""
    return module.forward if isinstance(module, torch.nn.Module) else module


def module_title(module: Callable[..., Any]) -> str:
    """Return what messages call a module: its class, or the name of the function, 'it' if that has none."""
    return type(module).__name__ if isinstance(module, torch.nn.Module) else getattr(module, '__name__', 'it')


def signature_of(module: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a module or function; of a built-in one that has none, any by position."""
    try:
        return inspect.signature(forward_of(module))
    except ValueError:
        return inspect.signature(lambda *arguments: None)


def read_call(
    module: Callable[..., Any], sample: Any, title: str, file_inputs: Sequence[str] = ()
) -> ModuleCall:
    """Return the call that a sample stands for.

    Args:
        module: the module that is called.
        sample: one argument, a tuple or list of arguments, or a dict of arguments by name; arguments are
            tensors or arrays of numpy, or hold them, or stay as they are. A dict whose keys are the names of
            all inputs of the file and no others, of which one is no argument of the module, is taken by
            position, in the order of the file.
        title: title of the sample, for messages.
        file_inputs: names of the file's inputs.

    Raises:
        UsageError: a name that is no argument of the module, unless the keys are the file's inputs; arguments
            that do not fit; no tensor, or two of one name.
    """
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
    _refuse_equal(names, f'{title}: of the arguments')
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
    """Return positional and keyword arguments of a sample, arrays as tensors."""
    if isinstance(sample, dict):
        takes_any = any(entry.kind is entry.VAR_KEYWORD for entry in signature.parameters.values())
        unknown = [name for name in sample if name not in signature.parameters and not takes_any]
        if not unknown:
            return (), _with_tensors(dict(sample))
        if set(sample) == set(file_inputs):
            return tuple(_with_tensors([sample[name] for name in file_inputs])), {}
        raise UsageError(
            f'{title}: {unknown[0]!r} is no argument of {module_title(module)}{signature}; name tensors as '
            f"the module's arguments, or all of them as the file's inputs: {', '.join(file_inputs)}"
        )
    args = tuple(sample) if isinstance(sample, list | tuple) else (sample,)
    return tuple(_with_tensors(list(args))), {}


def _with_tensors(arguments: Any) -> Any:
    """Return nested arguments in which arrays of numpy are tensors."""
    return pytree.tree_map(
        lambda leaf: torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf, arguments
    )


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return name -> leaf of a nested value, in order."""
    leaves, _ = pytree.tree_flatten_with_path(_with_tensors(value))
    return [('.'.join([name, *map(_key_text, path)]).strip('.'), leaf) for path, leaf in leaves]


def _key_text(key: Any) -> str:
    """Return a step into a container as text: index, key or name of the attribute."""
    for attribute in ('idx', 'key', 'name'):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def named_results(result: Any) -> dict[str, torch.Tensor]:
    """Return name -> tensor of what a module returned; what is neither a tensor nor an array is left out.

    One that is returned by itself is `RESULT`; one in a tuple, list or dict has its index or key, '0' or
    'boxes.0', also if it is the only one. UsageError: two have one name, as by the keys 0 and '0'.
    """
    tensors = [(name or RESULT, leaf) for name, leaf in _leaves('', result) if isinstance(leaf, torch.Tensor)]
    _refuse_equal([name for name, _ in tensors], 'of the results')
    return dict(tensors)


def _refuse_equal(names: Sequence[str], place: str) -> None:
    """Raise UsageError if two tensors have one name; '' stands for what is no tensor."""
    counts = collections.Counter(filter(None, names))
    if equal := [name for name, count in counts.items() if count > 1]:
        raise UsageError(
            f'{place} {counts[equal[0]]} tensors are called {equal[0]!r}, by their keys and indices joined '
            f'with dots; let a wrapper of the module take and return tensors of different names'
        )


def pair_names(
    file_names: Sequence[str], module_names: Sequence[str], place: str, module: str
) -> dict[str, str]:
    """Return name in the file -> name in the module: by name if the module has all, else by position.

    Args:
        file_names: names of the file's inputs, or of its outputs, in order.
        module_names: names of the module's arguments or results; if they are paired by name, there may be
            more, which have no partner.
        place: the file and what of it is paired, for messages.
        module: what of the module it is paired with, for messages.

    Raises:
        UsageError: the module lacks a name, and the counts differ.
    """
    if set(file_names) <= set(module_names):
        return {name: name for name in file_names}
    if len(file_names) == len(module_names):
        return dict(zip(file_names, module_names, strict=True))
    raise UsageError(
        f'{place} are {", ".join(file_names)}; {module} are {", ".join(module_names)}: the counts differ and '
        f'the names do not fit; let a wrapper of the module take and return the tensors of the file'
    )


def as_fed(array: np.ndarray, tensor: FileTensor, title: str) -> np.ndarray:
    """Return an array in the dtype that a file takes.

    Floats are rounded to the file's float type; integers only change their width. An array that has the dtype
    is returned itself.

    Args:
        array: the value of that input in a sample.
        tensor: input of the file.
        title: title of the sample, for messages.

    Raises:
        UsageError: the file takes another kind of numbers (bfloat16, signed and unsigned integers are kinds
            of their own), or integers that do not hold the values.
    """
    dtype = np.dtype(tensor.dtype)
    if array.dtype == dtype:
        return array
    fed = array.astype(dtype)
    if array.dtype.kind != dtype.kind or (dtype.kind in 'iu' and not np.array_equal(fed, array)):
        raise UsageError(
            f'{title}: the tensor for {tensor.text} is {array.dtype}; give it as the dtype of the file'
        )
    return fed


class FlatModule(torch.nn.Module):
    """A module that takes and returns the tensors of a file in the file's order.

    Attributes:
        module: the user's.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        call: ModuleCall,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        """Bind a module.

        Args:
            module: the user's.
            call: gives the values of arguments for which the file has no input.
            inputs: name of the file's input -> name of the module's tensor, see `ModuleCall.names`.
            outputs: name of the file's output -> name of the module's result, see `named_results`.
        """
        super().__init__()
        self.module = module
        self._call, self._inputs, self._outputs = call, dict(inputs), dict(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module with tensors in the order of the file's inputs, into which it may write.

        Its results are returned in the order of the file's outputs.
        """
        by_name = dict(zip(self._inputs.values(), tensors, strict=True))
        values = self._call.replace('', by_name).values
        args, kwargs = pytree.tree_unflatten(list(values), self._call.tree)
        results = named_results(self.module(*args, **kwargs))
        return tuple(results[name] for name in self._outputs.values())
