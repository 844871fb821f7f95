"""What `trace` writes down while a module runs: nodes, and which tensor object is which tensor of the graph.

A tensor that comes from the voxels is tracked by identity. A function without a counterpart does not stop the
pass: its results are marked with the reason, and the first use of such a tensor by something that the graph
needs raises it. So a module may print a maximum, but not feed it on.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch.conv import SparseConvolution as ConvolutionModule
from torch import nn
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.core.errors import ExportError, ShapeError
from mmdeploy_ext.exporting.sparse import trace_functions as functions
from mmdeploy_ext.exporting.sparse.trace_functions import UnsupportedOperatorError, Value, Values
from mmdeploy_ext.sparse.ir import ScatterDense, SparseConvolution, Transpose


class NoSiteLeftError(ExportError):
    """The traced voxels do not reach the end of the network."""


class Recorder(Values):
    """What a module does while it runs under `Functions`, with its submodules hooked."""

    _paused = 0

    # ---- functions between modules

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block nothing is recorded."""
        return patched(self, _paused=self._paused + 1)

    def function(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a torch function and record what it means."""
        operands = [] if self._paused else _tensors((args, kwargs))
        tracked = [value for tensor in operands if (value := self._value(tensor))]
        result = func(*args, **kwargs)
        results, changed = list(_tensors(result)), _changed(func, args, kwargs)
        if not tracked or not (results or changed):
            return result
        value = self._record(tracked, func, args, kwargs, result)
        for tensor in changed:
            self._rebind_aliases(tensor, value)
        for tensor in results:
            if tensor.dtype.is_floating_point:
                self._bind(tensor, value)
        return result

    def _record(self, tracked: list[Value], func: Callable, args: tuple, kwargs: dict, result: Any) -> Value:
        if broken := next((value for value in tracked if value.problem), None):
            return broken
        try:
            return functions.record(self, func, args, kwargs, result)
        except UnsupportedOperatorError as error:
            return Value('', problem=f'{self.path or "the encoder"}: {error}')

    def _rebind_aliases(self, tensor: torch.Tensor, value: Value) -> None:
        """Let other objects on the storage that was written to change along; parts of it are lost."""
        before = self._value(tensor)
        storage = tensor.untyped_storage().data_ptr()
        reason = f'{self.path or "the encoder"}: changes in place a tensor that another one looks into'
        for other in self._alive:
            if other is not tensor and other.untyped_storage().data_ptr() == storage:
                same = before is not None and self._values[id(other)].name == before.name
                self._values[id(other)] = value if same else Value('', problem=reason)
        self._bind(tensor, value)

    # ---- modules

    def hook(self, path: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Hook one submodule; the handles remove the hooks."""
        enter, leave = self._enter, self._leave
        if isinstance(module, ConvolutionModule):
            enter, leave = self._enter_convolution, self._leave_convolution
        return [
            module.register_forward_pre_hook(
                lambda part, args, kwargs: enter(path, part, args, kwargs), with_kwargs=True
            ),
            # first of all hooks: what the user's own hooks do with the output happens after the module
            module.register_forward_hook(
                lambda part, args, kwargs, result: leave(path, part, args, kwargs, result),
                with_kwargs=True,
                prepend=True,
            ),
        ]

    def _enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._path.append(path)

    def _leave(self, path: str, module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
        self._path.pop()
        if self._paused or not any(self._value(tensor) for tensor in _tensors((args, kwargs))):
            return
        for tensor in _tensors(result):
            if self._value(tensor) is None and tensor.dtype.is_floating_point:
                reason = f'{path or "the encoder"}: {type(module).__name__} has no counterpart in the dialect'
                self._bind(tensor, Value('', problem=reason))

    def _enter_convolution(self, path: str, module: ConvolutionModule, args: tuple, kwargs: dict) -> None:
        self._path.append(path)
        source = functions.convolution_input(path, args, kwargs)
        if self._value(source.features) is None:
            raise ExportError(f'{path}: takes a sparse tensor that does not come from the voxels')
        if source.features.shape[1] != module.in_channels:
            raise ShapeError(
                f'{path}: gets {source.features.shape[1]} features per site, expected {module.in_channels}'
            )
        if not self.nodes and module.ndim == 3 and source.spatial_shape != self._shape:
            raise ExportError(
                f'{path}: works on the grid {source.spatial_shape}, expected {self._shape}; '
                f'module, config and order disagree'
            )
        functions.refuse_small_grid(path, module, source)
        self._paused += 1

    def _leave_convolution(
        self, path: str, module: ConvolutionModule, args: tuple, kwargs: dict, result: SparseConvTensor
    ) -> None:
        self._paused -= 1
        source = functions.convolution_input(path, args, kwargs)
        value = self._value(source.features)
        problem = value.problem or functions.convolution_problem(path, module)
        if problem := problem or self._sites_problem(path, source, value):
            value = Value('', problem=problem)
        elif not len(result.features):
            raise NoSiteLeftError(
                f'{path}: no active site is left of the {len(source.features)} that it was traced with; '
                f'trace with the coordinates of a sweep'
            )
        else:
            fields = functions.convolution_fields(module) | dict(
                input_spatial_shape=tuple(source.spatial_shape),
                output_spatial_shape=tuple(result.spatial_shape),
                input_rows=len(source.features),
                output_rows=len(result.features),
            )
            value = self.add(SparseConvolution, (value,), True, **fields)
            self._sites[value.name] = (result.indices.clone(), list(result.spatial_shape))
        self._path.pop()
        self._bind(result.features, value)

    def _sites_problem(self, path: str, tensor: SparseConvTensor, value: Value) -> str:
        """Return what is wrong with the sites of a sparse tensor whose features are `value`, or ''."""
        if tensor.batch_size != 1:
            return f'{path}: works on {tensor.batch_size} samples; the dialect knows one'
        indices, shape = self._sites[value.name]
        if torch.equal(indices, tensor.indices) and shape == tensor.spatial_shape:
            return ''
        return (
            f'{path}: its features and its coordinates do not belong together; the dialect cannot '
            f'move sites or change their grid between convolutions'
        )

    def dense(self, tensor: SparseConvTensor, channels_first: bool, result: torch.Tensor) -> None:
        """Record `SparseConvTensor.dense`."""
        value = self._value(tensor.features)
        if self._paused or value is None:
            return
        if problem := value.problem or self._sites_problem(self.path or 'the encoder', tensor, value):
            self._bind(result, Value('', problem=problem))
            return
        shape = tuple(tensor.spatial_shape)
        dense_shape = (1, tensor.features.shape[1], *shape)
        value = self.add(ScatterDense, (value,), False, spatial_shape=shape, output_shape=dense_shape)
        if not channels_first:
            value = self.add(Transpose, (value,), False, dims=(0, 2, 3, 4, 1))
        self._bind(result, value)


class Functions(TorchFunctionMode):
    """Shows a recorder every torch function of the thread while it is open."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self._recorder.function(func, args, kwargs or {})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested arguments, the features of sparse tensors among them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, SparseConvTensor):
        yield value.features
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _changed(func: Callable, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """Return the tensors that a function writes to."""
    name = getattr(func, '__name__', '')
    written = list(_tensors(kwargs.get('out')))
    in_place = name.endswith('_') and not name.endswith('__')
    if (
        in_place
        or name.startswith('__i')
        or name in ('__setitem__', '__set__')
        or kwargs.get('inplace')
        or (args[2:] and name in ('relu', 'dropout') and args[-1] is True)
    ):
        written += list(_tensors(args[:1]))
    return written
