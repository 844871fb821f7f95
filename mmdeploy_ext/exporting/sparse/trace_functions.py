"""What convolutions and the functions between them mean in a sparse graph; which tensor is which there."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch.conv import SparseConvolution as ConvolutionModule
from torch.nn import functional

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.sparse.ir import Add, BatchNorm, Node, Relu, Reshape, SparseConvolution, Transpose, Triple

DEFAULT_BOUND = 200000
PROBE = (2, 3, 5, 7, 11, 13, 17, 19)
"""Sizes of a tensor of rank up to 8, all different: its shape tells the order of its axes."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph by its id: features of active sites (N, C) where `sparse`, else a dense tensor.

    Or, with a `problem`, one that the graph cannot have.
    """

    name: str
    sparse: bool = False
    problem: str = ''


class UnsupportedOperatorError(Exception):
    """A function that the dialect has no operation for; the message continues 'MODULE: '."""


class Values:
    """Nodes of one forward pass in their order, and the tensors that went into them."""

    def __init__(
        self, features: torch.Tensor, coordinates: torch.Tensor, spatial_shape: Triple, order: str
    ) -> None:
        self.nodes: list[Node] = []
        self.order = order
        self._shape = list(spatial_shape)
        self._values: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []
        self._path: list[str] = []
        self._sites = {'0': (coordinates.clone(), self._shape)}
        self._bind(features, Value('0', sparse=True))

    def _bind(self, tensor: torch.Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)  # an id is only good while its object lives

    def _value(self, tensor: object) -> Value | None:
        return self._values.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None

    def use(self, tensor: torch.Tensor, where: str) -> Value:
        """Return what a tensor is in the graph; ExportError where the dialect cannot express it."""
        value = self._value(tensor)
        if value is None:
            raise ExportError(
                f'{where}: takes a tensor that does not come from the voxels; expected one that does'
            )
        if value.problem:
            raise ExportError(value.problem)
        return value

    def add(self, node_type: type[Node], inputs: tuple[Value, ...], sparse: bool, **fields: Any) -> Value:
        """Append a node and return its output."""
        output = f't{len(self.nodes)}'
        names = tuple(value.name for value in inputs)
        if sparse and node_type is not SparseConvolution:
            self._sites[output] = self._sites[names[0]]
        self.nodes.append(node_type(name=output, module=self.path, inputs=names, output=output, **fields))
        return Value(output, sparse=sparse)

    @property
    def path(self) -> str:
        """Path of the module that runs; '' is the encoder itself."""
        return self._path[-1] if self._path else ''

    def lookup(self, tensor: object) -> Value:
        """Return the value of an operand of a function; UnsupportedOperatorError where it is not tracked."""
        value = self._value(tensor)
        if value is None:
            raise UnsupportedOperatorError('combines the voxels with something that does not come from them')
        return value


def record(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: Any) -> Value:
    """Record what a torch function did; return what its result is, or raise UnsupportedOperatorError."""
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


def _same(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    return recorder.lookup(args[0])


def _dropout(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    if kwargs.get('training', args[2] if len(args) > 2 else True):
        raise UnsupportedOperatorError('dropout at random; expected evaluation mode')
    return recorder.lookup(args[0])


def _relu(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0] if args else kwargs['input'])
    _on_sites(value, 'ReLU')
    return recorder.add(Relu, (value,), True)


def _add(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    operands = [*args, *(kwargs[name] for name in ('input', 'other') if name in kwargs)][:2]
    if kwargs.get('alpha', 1) != 1:
        raise UnsupportedOperatorError(f'addition with alpha={kwargs["alpha"]}; the dialect adds with 1')
    values = tuple(recorder.lookup(operand) for operand in operands)
    for value in values:
        _on_sites(value, 'addition')
    if operands[0].shape != operands[1].shape:
        raise UnsupportedOperatorError(
            f'addition of {tuple(operands[0].shape)} and {tuple(operands[1].shape)}; expected equal shapes'
        )
    return recorder.add(Add, values, True)


def _batch_norm(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    if func is not functional.batch_norm:
        raise UnsupportedOperatorError(f'{func} is not torch.nn.functional.batch_norm')
    bound = inspect.signature(functional.batch_norm).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    value = recorder.lookup(given['input'])
    _on_sites(value, 'batch normalisation')
    mean, var = given['running_mean'], given['running_var']
    if given['training'] or mean is None or var is None:
        raise UnsupportedOperatorError(
            'batch normalisation by the statistics of its own input; it needs running statistics'
        )
    gamma = torch.ones_like(mean) if given['weight'] is None else given['weight']
    beta = torch.zeros_like(mean) if given['bias'] is None else given['bias']
    tensors = dict(gamma=gamma, beta=beta, mean=mean, var=var)
    arrays = {name: np.array(one.detach().cpu().numpy(), np.float32) for name, one in tensors.items()}
    return recorder.add(BatchNorm, (value,), True, **arrays, eps=float(given['eps']))


def _on_sites(value: Value, what: str) -> None:
    if not value.sparse:
        raise UnsupportedOperatorError(
            f'{what} on the dense tensor; the dialect ends there; trace the encoder without what follows it'
        )


def _permutation(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0])
    if value.sparse:
        raise UnsupportedOperatorError(f'{func.__name__} of features on sites')
    probe = func(torch.empty(PROBE[: args[0].ndim], device='meta'), *args[1:], **kwargs)
    dims = tuple(PROBE.index(size) for size in probe.shape)
    if dims == tuple(range(len(dims))):
        return value
    return recorder.add(Transpose, (value,), False, dims=dims)


def _reshape(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
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
HANDLERS = {name: handler for handler, names in NAMES.items() for name in names.split()}
"""Name of a torch function -> (recorder, function, args, kwargs, result) to what the result is."""


def convolution_input(path: str, args: tuple, kwargs: dict) -> SparseConvTensor:
    """Return the sparse tensor that a module is called with; ExportError where there is another argument."""
    values = [*args, *kwargs.values()]
    if sum(value is not None for value in values) != 1 or not isinstance(values[0], SparseConvTensor):
        raise ExportError(
            f'{path}: is called with more than one sparse tensor; expected one SparseConvTensor'
        )
    return values[0]


def convolution_problem(path: str, module: ConvolutionModule) -> str:
    """Return what the dialect cannot express of a convolution, or ''."""
    kind = type(module).__name__
    if module.ndim != 3:
        return f'{path}: {kind} has {module.ndim} dimensions; the dialect knows 3'
    if module.transposed:
        return f'{path}: {kind} is a transposed convolution, which the engine does not read'
    if module.groups != 1:
        return f'{path}: {kind} has {module.groups} groups; the dialect knows 1'
    if module.act_type.name not in ('None_', 'ReLU'):
        return f'{path}: {kind} has the activation {module.act_type.name}; the dialect knows ReLU'
    return ''


def refuse_small_grid(path: str, module: ConvolutionModule, source: SparseConvTensor) -> None:
    """Raise an ExportError where a kernel does not fit on the grid."""
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
    """Return the fields of the graph's node that the module alone decides."""
    triples = 'kernel_size stride padding dilation output_padding'
    fields = {name: tuple(int(size) for size in getattr(module, name)) for name in triples.split()}
    bias = None if module.bias is None else module.bias.detach().cpu().numpy().copy()
    return fields | dict(
        weight=module_weight(module),
        bias=bias,
        subm=bool(module.subm),
        inverse=bool(module.inverse),
        rulebook=module.indice_key,
        activation='ReLU' if module.act_type.name == 'ReLU' else 'None',
        output_bound=int(getattr(module, 'output_bound', DEFAULT_BOUND)),
    )


def module_weight(module: ConvolutionModule) -> np.ndarray:
    """Return a convolution module's kernel as (O, k0, k1, k2, I) float32.

    spconv 2 multiplies by a 1x1x1 kernel's memory as if it were (I, O), whatever its shape says (its issue
    556): those are turned into what they compute.
    """
    weight = module.weight.detach().cpu().numpy()
    if module.conv1x1:
        inputs, outputs = module.in_channels, module.out_channels
        weight = weight.reshape(inputs, outputs).T.reshape(outputs, 1, 1, 1, inputs)
    return np.array(weight, np.float32, order='C')
