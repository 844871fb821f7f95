"""A sparse graph from a torch module, by watching one forward pass of it.

Glossary: N voxels, C channels, X, Y, Z cells of the result along each axis.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch.conv import SparseConvolution as ConvolutionModule
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.errors import ExportError, ShapeError, UsageError
from mmdeploy_ext.runtime.sparse.ir import (
    ORDERS,
    Add,
    BatchNorm,
    Node,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    SparseGraph,
    Transpose,
    Triple,
    prune,
    renumber,
)
from mmdeploy_ext.runtime.sparse.plan import name_rulebooks
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat.import_hook import patched

# Records the nodes of a sparse graph while a module runs.


DEFAULT_BOUND = 200000
"""`output_bound` (most sites) of a convolution without one."""
PROBE = (2, 3, 5, 7, 11, 13, 17, 19)
"""Different sizes for a rank up to 8: a result's shape tells its order of axes."""


class NoSiteLeftError(ExportError):
    """The traced voxels do not reach the end of the network."""


class UnsupportedOperatorError(Exception):
    """A function without a node in `runtime/sparse/ir.py`; messages show 'MODULE: ' before it."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the module in the graph."""

    name: str
    sparse: bool = False
    problem: str = ''


class Recorder:
    """Nodes of one forward pass in their order, and the tensors that went into them.

    Args:
        features: (N, C) float32 of N voxels.
        coordinates: (N, 4) int32: sample, then axes in `order`.
        spatial_shape: grid size per axis, in `order`.
        order: 'xyz' or 'zyx'.
    """

    def __init__(
        self, features: torch.Tensor, coordinates: torch.Tensor, spatial_shape: Triple, order: str
    ) -> None:
        self.nodes: list[Node] = []
        self.order = order
        self._paused = 0
        self._shape = list(spatial_shape)
        self._values: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []
        self._path: list[str] = []
        self._sites = {'0': (coordinates.clone(), self._shape)}
        self._bind(features, Value('0', sparse=True))

    @property
    def path(self) -> str:
        return self._path[-1] if self._path else ''

    # ---- tensors

    def _bind(self, tensor: torch.Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)  # an id is only good while its object lives

    def _value(self, tensor: object) -> Value | None:
        return self._values.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None

    def use(self, tensor: torch.Tensor, user: str) -> Value:
        """Return the tensor's value in the graph."""
        value = self._value(tensor)
        if value is None:
            raise ExportError(
                f'{user}: gets a tensor that does not depend on the voxels; expected one that does'
            )
        if value.problem:
            raise ExportError(value.problem)
        return value

    def lookup(self, tensor: object) -> Value:
        value = self._value(tensor)
        if value is None:
            raise UnsupportedOperatorError('combines the voxels with a tensor that does not depend on them')
        return value

    def add(self, node_type: type[Node], inputs: tuple[Value, ...], sparse: bool, **fields: Any) -> Value:
        """Append a node of the running module, and return its output.

        `sparse`: the output holds features of sites; `**fields` are the other fields of `node_type`.
        """
        output = f't{len(self.nodes)}'
        names = tuple(value.name for value in inputs)
        if sparse and node_type is not SparseConvolution:
            self._sites[output] = self._sites[names[0]]
        self.nodes.append(node_type(name=output, module=self.path, inputs=names, output=output, **fields))
        return Value(output, sparse=sparse)

    # ---- functions between modules

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return patched(self, _paused=self._paused + 1)

    def function(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Return `func(*args, **kwargs)`, a call of a torch function, and record it in the graph."""
        operands = [] if self._paused else _tensors((args, kwargs))
        tracked = [value for tensor in operands if (value := self._value(tensor))]
        result = func(*args, **kwargs)
        results, changed = list(_tensors(result)), _changed(func, args, kwargs)
        if not tracked or not (results or changed):
            return result
        value = next((value for value in tracked if value.problem), None)
        if value is None:
            try:
                value = record(self, func, args, kwargs, result)
            except UnsupportedOperatorError as error:
                value = Value('', problem=f'{self.path or "the encoder"}: {error}')
        for tensor in changed:
            self._rebind_aliases(tensor, value)
        for tensor in results:
            if tensor.dtype.is_floating_point:
                self._bind(tensor, value)
        return result

    def _rebind_aliases(self, tensor: torch.Tensor, value: Value) -> None:
        before = self._value(tensor)
        storage = tensor.untyped_storage().data_ptr()
        reason = f'{self.path or "the encoder"}: changes a tensor in place that has views'
        for alias in self._alive:
            if alias is not tensor and alias.untyped_storage().data_ptr() == storage:
                same = before is not None and self._values[id(alias)].name == before.name
                self._values[id(alias)] = value if same else Value('', problem=reason)
        self._bind(tensor, value)

    # ---- modules

    def hook(self, path: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Hook the submodule of a path; the returned handles remove the hooks."""
        leave = self._leave_convolution if isinstance(module, ConvolutionModule) else self._leave

        def enter(part: nn.Module, args: tuple, kwargs: dict) -> None:
            self._path.append(path)
            if isinstance(part, ConvolutionModule):
                self._enter_convolution(path, part, args, kwargs)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            # first of all hooks: what the user's own hooks do with the output happens after the module
            module.register_forward_hook(
                lambda part, args, kwargs, result: leave(path, part, args, kwargs, result),
                with_kwargs=True,
                prepend=True,
            ),
        ]

    def _leave(self, path: str, module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
        self._path.pop()
        if self._paused or not any(self._value(tensor) for tensor in _tensors((args, kwargs))):
            return
        for tensor in _tensors(result):
            if self._value(tensor) is None and tensor.dtype.is_floating_point:
                reason = f'{path or "the encoder"}: {type(module).__name__} has no counterpart in the dialect'
                self._bind(tensor, Value('', problem=reason))

    def _enter_convolution(self, path: str, module: ConvolutionModule, args: tuple, kwargs: dict) -> None:
        source = convolution_input(path, args, kwargs)
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
        refuse_small_grid(path, module, source)
        self._paused += 1

    def _leave_convolution(
        self, path: str, module: ConvolutionModule, args: tuple, kwargs: dict, result: SparseConvTensor
    ) -> None:
        self._paused -= 1
        source = convolution_input(path, args, kwargs)
        value = self._value(source.features)
        problem = value.problem or convolution_problem(path, module)
        if problem := problem or self._sites_problem(path, source, value):
            value = Value('', problem=problem)
        elif not len(result.features):
            raise NoSiteLeftError(
                f'{path}: none of the {len(source.features)} traced sites is left active; trace with the '
                'coordinates of a real sweep'
            )
        else:
            fields = convolution_fields(module) | dict(
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
        if tensor.batch_size != 1:
            return f'{path}: has {tensor.batch_size} samples; the dialect supports one'
        indices, shape = self._sites[value.name]
        if torch.equal(indices, tensor.indices) and shape == tensor.spatial_shape:
            return ''
        return (
            f'{path}: its features and coordinates do not match; the dialect cannot move sites or change '
            'their grid between convolutions'
        )

    def dense(self, tensor: SparseConvTensor, channels_first: bool, result: torch.Tensor) -> None:
        """Record a call of `tensor.dense(channels_first)` with `result` (1, C, ...) or (1, ..., C)."""
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
    """Passes every torch function of the thread to a recorder while it is open."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self._recorder.function(func, args, kwargs or {})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, SparseConvTensor):
        yield value.features
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _changed(func: Callable, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    name = getattr(func, '__name__', '')
    outputs = list(_tensors(kwargs.get('out')))
    in_place = name.endswith('_') and not name.endswith('__')
    if (
        in_place
        or name.startswith('__i')
        or name in ('__setitem__', '__set__')
        or kwargs.get('inplace')
        or (args[2:] and name in ('relu', 'dropout') and args[-1] is True)
    ):
        outputs += list(_tensors(args[:1]))
    return outputs


def record(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: Any) -> Value:
    """Record the node of a torch function that was called with a tracked tensor; return the result's value.

    The recorder gets no node if the result is the same tensor in the graph, as of `clone`.
    """
    if func == torch.Tensor.data.__get__:
        return recorder.lookup(args[0])
    name = getattr(func, '__name__', str(func))
    handler = HANDLERS.get(name.strip('_').removeprefix('i') if name.startswith('__') else name.rstrip('_'))
    if handler is None or not isinstance(result, torch.Tensor):
        raise UnsupportedOperatorError(
            f'{name} has no counterpart in the dialect (convolution, batch normalisation, ReLU and '
            f'addition on sites; scatter, transpose and reshape after them)'
        )
    return handler(recorder, func, args, kwargs, result)


def _same(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    return recorder.lookup(args[0])


def _dropout(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    if kwargs.get('training', args[2] if len(args) > 2 else True):
        raise UnsupportedOperatorError('dropout at random; expected evaluation mode')
    return recorder.lookup(args[0])


def _relu(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0] if args else kwargs['input'])
    _check_sparse(value, 'ReLU')
    return recorder.add(Relu, (value,), True)


def _add(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    operands = [*args, *(kwargs[name] for name in ('input', 'other') if name in kwargs)][:2]
    if kwargs.get('alpha', 1) != 1:
        raise UnsupportedOperatorError(f'addition with alpha={kwargs["alpha"]}; the dialect adds with 1')
    values = tuple(recorder.lookup(operand) for operand in operands)
    for value in values:
        _check_sparse(value, 'addition')
    if operands[0].shape != operands[1].shape:
        raise UnsupportedOperatorError(
            f'addition of {tuple(operands[0].shape)} and {tuple(operands[1].shape)}; expected equal shapes'
        )
    return recorder.add(Add, values, True)


def _batch_norm(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    if func is not functional.batch_norm:
        raise UnsupportedOperatorError(f'{func} is not torch.nn.functional.batch_norm')
    bound = inspect.signature(functional.batch_norm).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    value = recorder.lookup(arguments['input'])
    _check_sparse(value, 'batch normalisation')
    mean, var = arguments['running_mean'], arguments['running_var']
    if arguments['training'] or mean is None or var is None:
        raise UnsupportedOperatorError(
            'batch normalisation with the statistics of its input; expected running statistics'
        )
    gamma = torch.ones_like(mean) if arguments['weight'] is None else arguments['weight']
    beta = torch.zeros_like(mean) if arguments['bias'] is None else arguments['bias']
    tensors = dict(gamma=gamma, beta=beta, mean=mean, var=var)
    arrays = {name: np.array(tensor.detach().cpu().numpy(), np.float32) for name, tensor in tensors.items()}
    return recorder.add(BatchNorm, (value,), True, **arrays, eps=float(arguments['eps']))


def _check_sparse(value: Value, operation: str) -> None:
    if not value.sparse:
        raise UnsupportedOperatorError(
            f'{operation} on the dense tensor; the dialect ends there; trace the encoder without what '
            f'follows it'
        )


def _permutation(
    recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor
) -> Value:
    value = recorder.lookup(args[0])
    if value.sparse:
        raise UnsupportedOperatorError(f'{func.__name__} of features on sites')
    probe = func(torch.empty(PROBE[: args[0].ndim], device='meta'), *args[1:], **kwargs)
    dims = tuple(PROBE.index(size) for size in probe.shape)
    if dims == tuple(range(len(dims))):
        return value
    return recorder.add(Transpose, (value,), False, dims=dims)


def _reshape(recorder: Recorder, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0])
    if result.shape == args[0].shape and result.dtype == args[0].dtype:
        return value
    if value.sparse or result.dtype != args[0].dtype:
        raise UnsupportedOperatorError(
            f'{func.__name__} of {tuple(args[0].shape)} to {tuple(result.shape)} {result.dtype}'
        )
    return recorder.add(Reshape, (value,), False, dims=tuple(result.shape))


NAMES = {
    _same: 'contiguous clone detach alias to float half double type type_as cpu cuda requires_grad',
    _permutation: 'permute transpose swapaxes swapdims movedim moveaxis',
    _reshape: 'view reshape flatten unflatten squeeze unsqueeze view_as reshape_as',
    _add: 'add radd',
    _relu: 'relu',
    _dropout: 'dropout',
    _batch_norm: 'batch_norm',
}
"""Handler -> names of its torch functions, without underscores."""
HANDLERS = {name: handler for handler, names in NAMES.items() for name in names.split()}
"""Name of a torch function -> handler, see `record`."""


def convolution_input(path: str, args: tuple, kwargs: dict) -> SparseConvTensor:
    """Return the sparse tensor that the convolution at `path` is called with."""
    values = [*args, *kwargs.values()]
    if sum(value is not None for value in values) != 1 or not isinstance(values[0], SparseConvTensor):
        raise ExportError(
            f'{path}: is called with more than one sparse tensor; expected one SparseConvTensor'
        )
    return values[0]


def convolution_problem(path: str, module: ConvolutionModule) -> str:
    """Return why the dialect cannot express a convolution, or ''."""
    class_name = type(module).__name__
    if module.ndim != 3:
        return f'{path}: {class_name} has {module.ndim} dimensions; the dialect supports 3'
    if module.transposed:
        return f'{path}: {class_name} is a transposed convolution, which the engine does not support'
    if module.groups != 1:
        return f'{path}: {class_name} has {module.groups} groups; the dialect supports 1'
    if module.act_type.name not in ('None_', 'ReLU'):
        return (
            f'{path}: {class_name} has the activation {module.act_type.name}; the dialect supports only ReLU'
        )
    return ''


def refuse_small_grid(path: str, module: ConvolutionModule, source: SparseConvTensor) -> None:
    """Raise ExportError if a kernel exceeds the padded grid."""
    if module.subm or module.inverse or module.transposed:
        return
    axes = zip(source.spatial_shape, module.kernel_size, module.padding, module.dilation, strict=True)
    for size, kernel, padding, dilation in axes:
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            raise ExportError(
                f'{path}: kernel {list(module.kernel_size)} does not fit on the grid {source.spatial_shape}; '
                f'the grid is too small for this encoder'
            )


def convolution_fields(module: ConvolutionModule) -> dict[str, Any]:
    """Return the fields of a convolution's node.

    The weight is (O, k0, k1, k2, I) float32. spconv 2 reads a 1x1x1 kernel's memory as (I, O) (its issue
    556), so this kernel is transposed.
    """
    triples = 'kernel_size stride padding dilation output_padding'
    fields = {name: tuple(int(size) for size in getattr(module, name)) for name in triples.split()}
    weight = module.weight.detach().cpu().numpy()
    if module.conv1x1:
        inputs, outputs = module.in_channels, module.out_channels
        weight = weight.reshape(inputs, outputs).T.reshape(outputs, 1, 1, 1, inputs)
    return fields | dict(
        weight=np.array(weight, np.float32, order='C'),
        bias=None if module.bias is None else module.bias.detach().cpu().numpy().copy(),
        subm=bool(module.subm),
        inverse=bool(module.inverse),
        rulebook=module.indice_key,
        activation='ReLU' if module.act_type.name == 'ReLU' else 'None',
        output_bound=int(getattr(module, 'output_bound', DEFAULT_BOUND)),
    )


# Modules that give the outputs of folded convolutions.


@dataclasses.dataclass(frozen=True)
class LayerSource:
    """Modules behind a convolution: path of its BatchNorm or '', and whether a ReLU alone follows."""

    norm: str = ''
    relu: bool = False


def layer_sources(traced: SparseGraph) -> dict[str, LayerSource]:
    """Module path of a convolution -> source of its folded output, of an unfolded graph."""
    users: dict[str, list[Node]] = collections.defaultdict(list)
    for node in traced.nodes:
        for name in node.inputs:
            users[name].append(node)
    sources = {}
    for node in traced.convolutions():
        norm, behind = '', users[node.output]
        while len(behind) == 1 and isinstance(behind[0], BatchNorm):
            norm, behind = behind[0].module, users[behind[0].output]
        sources[node.module] = LayerSource(norm, len(behind) == 1 and isinstance(behind[0], Relu))
    return sources


def trace(
    module: nn.Module,
    coordinates: np.ndarray | None = None,
    features: np.ndarray | None = None,
    *,
    order: str,
    spatial_shape: Triple,
    in_channels: int,
) -> SparseGraph:
    """Return the graph of a sparse encoder, with BatchNorm and Relu as separate nodes.

    Args:
        module: float32, on any device. Its forward takes a SparseConvTensor; or features (N, in_channels),
            coordinates (N, 4) and batch_size; or also det3d's input_shape (x, y, z without the added layer of
            z).
        coordinates: (N, 4) int32 (sample 0, axes in `order`), inside the grid; N is not 0.
        features: (N, in_channels) float32; zeros by default.
        order: 'xyz' or 'zyx' (det3d).
        spatial_shape: grid size per axis, in that order; of det3d's modules with the added layer.
        in_channels: features per voxel.

    Raises:
        UsageError: unusable order, coordinates or features.
        NoSiteLeftError: an ExportError; no site is left behind a convolution.
        ShapeError: a convolution gets another number of features than it takes.
        ExportError: unknown arguments or results of the forward; a parameter that is not float32; or an
            operation without a node in `runtime.sparse.ir` (the message names the submodule).
    """
    if order not in ORDERS:
        raise UsageError(f'order={order!r} is unknown; expected one of {", ".join(ORDERS)}')
    shape = tuple(int(size) for size in spatial_shape)

    def traced(sites: np.ndarray, values: np.ndarray | None = None) -> SparseGraph:
        return _trace(module, *_voxels(sites, values, shape, in_channels), order, shape)

    if coordinates is None and features is not None:
        raise UsageError('features without coordinates; pass both, or neither for one zero voxel')
    if coordinates is not None:
        return traced(coordinates, features)
    try:
        return traced(np.zeros((1, 4), np.int32))
    except NoSiteLeftError:  # a stride may jump over a single voxel: a block of them at the origin
        axes = np.indices([min(size, 4) for size in shape]).reshape(3, -1).T
        return traced(np.pad(axes, ((0, 0), (1, 0))))


def _trace(
    module: nn.Module, coordinates: np.ndarray, features: np.ndarray, order: str, shape: Triple
) -> SparseGraph:
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ExportError(
                f'{name}: is {parameter.dtype}, expected float32; call .float() before the export'
            )
    device = next((parameter.device for parameter in module.parameters()), torch.device('cpu'))
    tensors = torch.from_numpy(features).to(device), torch.from_numpy(coordinates).to(device)
    recorder = Recorder(*tensors, shape, order)
    with compat.single_thread(), torch.no_grad(), _watched(module, recorder):
        result = _call(module, *tensors, shape)
        output, output_shape = _finish(recorder, result)
    if not any(isinstance(node, SparseConvolution) for node in recorder.nodes):
        raise ExportError(f'{type(module).__name__}: has no sparse convolution; pass the sparse encoder')
    graph = SparseGraph(
        tuple(recorder.nodes), order, shape, features.shape[1], output, output_shape, len(coordinates)
    )
    return name_rulebooks(renumber(prune(graph)))


@contextlib.contextmanager
def _watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    from spconv.pytorch import SparseConvTensor

    with contextlib.ExitStack() as stack:
        for path, part in module.named_modules():
            for handle in recorder.hook(path, part):
                stack.callback(handle.remove)
            flags = [name for name in ('record_voxel_count',) if getattr(part, name, False)]
            stack.enter_context(patched(part, training=False, **dict.fromkeys(flags, False)))
        original = SparseConvTensor.dense

        def dense(tensor: SparseConvTensor, channels_first: bool = True) -> torch.Tensor:
            with recorder.paused():
                result = original(tensor, channels_first)
            recorder.dense(tensor, channels_first, result)
            return result

        stack.enter_context(patched(SparseConvTensor, dense=dense))
        stack.enter_context(Functions(recorder))
        yield


def _voxels(
    coordinates: np.ndarray, features: np.ndarray | None, shape: Triple, in_channels: int
) -> tuple[np.ndarray, np.ndarray]:
    coordinates = np.array(coordinates, np.int32, order='C')  # copies: a module may write to its inputs
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or not len(coordinates):
        raise UsageError(f'coordinates have the shape {coordinates.shape}; expected (N, 4), N above 0')
    outside = (coordinates < 0) | (coordinates >= np.array([1, *shape]))
    if outside.any():
        row = coordinates[outside.any(1)][0].tolist()
        raise UsageError(f'coordinates: {row} is outside the grid {[1, *shape]} (sample, then axes)')
    if features is None:
        features = np.zeros((len(coordinates), in_channels), np.float32)
    features = np.array(features, np.float32, order='C')
    if features.shape != (len(coordinates), in_channels):
        raise UsageError(
            f'features have the shape {features.shape}; expected {(len(coordinates), in_channels)}'
        )
    return coordinates, features


def _call(module: nn.Module, features: torch.Tensor, coordinates: torch.Tensor, shape: Triple) -> Any:
    from spconv.pytorch import SparseConvTensor

    parameters = inspect.signature(module.forward).parameters.values()
    required = [
        item.name
        for item in parameters
        if item.default is item.empty and item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) == 1:
        return module(SparseConvTensor(features, coordinates, list(shape), 1))
    if len(required) == 3:
        tested = dict(test_mode=True) if any(item.name == 'test_mode' for item in parameters) else {}
        return module(features, coordinates, 1, **tested)
    if len(required) == 4 and required[3] == 'input_shape':
        # det3d's grid is x, y, z, and its module adds one layer of z
        size = [shape[2], shape[1], shape[0] - 1]
        return module(features, coordinates, 1, size)
    raise ExportError(
        f'{type(module).__name__}.forward takes ({", ".join(required)}); change it to accept (features, '
        'coordinates, batch_size) or one SparseConvTensor'
    )


def _finish(recorder: Recorder, result: Any) -> tuple[str, tuple[int, ...]]:
    from spconv.pytorch import SparseConvTensor

    if isinstance(result, dict):
        names = [name for name, value in result.items() if isinstance(value, torch.Tensor)]
        preferred = 'spatial_features' if 'spatial_features' in names else next(iter(names), None)
        result = result.get(preferred, result)
    elif isinstance(result, tuple | list) and result:
        result = result[0]
    if isinstance(result, SparseConvTensor):
        dense = result.dense()
        if recorder.order == 'xyz':
            dense = dense.permute(0, 1, 4, 2, 3)
        result = dense.reshape(1, -1, *dense.shape[3:])
    if not isinstance(result, torch.Tensor):
        raise ExportError(
            f'the encoder returns {type(result).__name__}; expected a tensor or a SparseConvTensor'
        )
    value = recorder.use(result, 'the result')
    if value.sparse:
        raise ExportError('the encoder returns features without their sites; expected a dense tensor')
    return value.name, tuple(result.shape)
