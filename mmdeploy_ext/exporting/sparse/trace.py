"""A sparse graph from a torch module, by watching one forward pass of it.

Glossary: N voxels, C channels, X, Y, Z cells of the result along each axis.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.exporting.sparse.recorder import Functions, NoSiteLeftError, Recorder
from mmdeploy_ext.runtime.sparse.ir import ORDERS, SparseConvolution, SparseGraph, Triple, prune, renumber
from mmdeploy_ext.runtime.sparse.plan import name_rulebooks
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat.import_hook import patched


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
