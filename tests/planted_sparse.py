"""Faults of sparse backbones: folding, order of axes, rulebook, and what writes and runs the files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.sparse.ir import Add, BatchNorm, Relu, Reshape, SparseConvolution, Transpose
from planting import arguments, planted, result

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.sparse.ir import Node, SparseGraph

FOLD, TRACE = 'mmdeploy_ext.sparse.fold:fold', 'mmdeploy_ext.exporting.sparse_backbone:trace'
ORDER, NAMES = 'mmdeploy_ext.sparse.order:reorder', 'mmdeploy_ext.sparse.plan:name_rulebooks'
PORTABLE, DIALECT = 'mmdeploy_ext.sparse.portable:to_onnx', 'mmdeploy_ext.sparse.libspconv:to_onnx'
BUILD, FEEDS = 'mmdeploy_ext.sparse.rulebook:build', 'mmdeploy_ext.sparse.buckets:feeds'
WRITER = 'mmdeploy_ext.sparse.node_writer:NodeWriter'
FACTS = 'mmdeploy_ext.exporting.sparse_backbone:metadata_props'
BOTH = 'sparse_portable sparse_libspconv'


def _nodes(graph: SparseGraph, change: Callable[[Node], Node], kind: Any = SparseConvolution) -> SparseGraph:
    nodes = tuple(change(node) if isinstance(node, kind) else node for node in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)


def _norms(**changes: Callable) -> Callable:
    """Return a fault that folds other batch normalisations than the model has."""

    def change(node: Node) -> Node:
        return dataclasses.replace(node, **{key: of(getattr(node, key)) for key, of in changes.items()})

    return arguments(lambda graph, *rest: (_nodes(graph, change, BatchNorm), *rest))


def _convolutions(change: Callable[[SparseConvolution], dict]) -> Callable:
    """Return a fault of the convolutions of a graph that a function gives."""
    return result(lambda graph, *_: _nodes(graph, lambda node: dataclasses.replace(node, **change(node))))


def _last(graph: SparseGraph) -> SparseConvolution:
    return graph.convolutions()[-1]


# ---- folding

for _name, _make in {
    'epsilon x 10': _norms(eps=lambda value: value * 10),
    'epsilon is forgotten': _norms(eps=lambda value: 0.0),
    'the mean is forgotten': _norms(mean=np.zeros_like),
    'the mean has the other sign': _norms(mean=np.negative),
    'beta is forgotten': _norms(beta=np.zeros_like),
    'no root of the variance': _norms(var=np.square),
    'variances of the channels before': _norms(var=lambda values: np.roll(values, 1)),
}.items():
    planted(f'folding: {_name}', BOTH, (FOLD, _make))
planted(
    'folding: in float16', BOTH, (FOLD, arguments(lambda graph, precision, *rest: (graph, 'fp16', *rest)))
)
planted(
    'folding: the last ReLU is missing',
    BOTH,
    (
        FOLD,
        result(
            lambda graph, *_: _nodes(
                graph,
                lambda node: dataclasses.replace(node, activation='None') if node is _last(graph) else node,
            )
        ),
    ),
)


def _rectified(graph: SparseGraph, *_: Any) -> SparseGraph:
    added = {name for node in graph.nodes if isinstance(node, Add) for name in node.inputs}
    return _nodes(
        graph,
        lambda node: dataclasses.replace(node, activation='ReLU') if node.output in added else node,
    )


planted('folding: a ReLU before the addition', 'sparse_portable', (FOLD, result(_rectified)))
planted(
    'folding: every bias is zero',
    BOTH,
    (FOLD, _convolutions(lambda node: dict(bias=np.zeros_like(node.bias)))),
)

# ---- tracing


planted(
    'the residual is forgotten',
    'sparse_portable',
    (
        TRACE,
        result(
            lambda graph, *_: _nodes(
                graph, lambda node: dataclasses.replace(node, inputs=(node.inputs[0],) * 2), Add
            )
        ),
    ),
)
planted('no activation behind the first layer', BOTH, (TRACE, result(lambda graph, *_: _without_relu(graph))))


def _without_relu(graph: SparseGraph) -> SparseGraph:
    first = next(node for node in graph.nodes if isinstance(node, Relu))
    nodes = (
        dataclasses.replace(
            node, inputs=tuple(first.inputs[0] if name == first.output else name for name in node.inputs)
        )
        for node in graph.nodes
        if node is not first
    )
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _square(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Return a fault of kernels as large along every axis."""
    return _convolutions(
        lambda node: (
            dict(weight=np.ascontiguousarray(change(node.weight))) if len(set(node.kernel_size)) == 1 else {}
        )
    )


for _name, _change in {
    'kernels are mirrored along the first axis': lambda weight: weight[:, ::-1],
    'kernels are mirrored along the last axis': lambda weight: weight[:, :, :, ::-1],
    'the first and the last axis of kernels have changed places': lambda weight: weight.swapaxes(1, 3),
    'channels in and out have changed places': lambda weight: (
        weight.swapaxes(0, 4) if weight.shape[0] == weight.shape[4] else weight
    ),
    'output channels are moved by one': lambda weight: np.roll(weight, 1, 0),
}.items():
    planted(_name, BOTH, (TRACE, _square(_change)))
planted(
    'x and y of the map have changed places',
    BOTH,
    (
        TRACE,
        result(
            lambda graph, *_: (
                _nodes(graph, lambda node: dataclasses.replace(node, dims=_swapped(node.dims)), Transpose)
                if any(isinstance(node, Transpose) for node in graph.nodes)
                else _transposed(graph)
            )
        ),
    ),
)


def _swapped(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (*dims[:-2], dims[-1], dims[-2])


def _transposed(graph: SparseGraph) -> SparseGraph:
    reshape = next(node for node in graph.nodes if isinstance(node, Reshape))
    turned = Transpose('', reshape.module, reshape.inputs, 'turned', (0, 1, 2, 4, 3))
    nodes = list(graph.nodes)
    place = nodes.index(reshape)
    nodes[place : place + 1] = [turned, dataclasses.replace(reshape, inputs=('turned',))]
    from mmdeploy_ext.sparse.ir import renumber

    return renumber(dataclasses.replace(graph, nodes=tuple(nodes)))


planted(
    'the layers of height are the outer channels', BOTH, (TRACE, result(lambda graph, *_: _by_height(graph)))
)


def _by_height(graph: SparseGraph) -> SparseGraph:
    """Return a graph whose map has (height, channel) for (channel, height) as its channels."""
    transpose = next((node for node in graph.nodes if isinstance(node, Transpose)), None)
    if transpose is None:
        reshape = next(node for node in graph.nodes if isinstance(node, Reshape))
        turned = Transpose('', reshape.module, reshape.inputs, 'turned', (0, 2, 1, 3, 4))
        nodes = list(graph.nodes)
        place = nodes.index(reshape)
        nodes[place : place + 1] = [turned, dataclasses.replace(reshape, inputs=('turned',))]
        from mmdeploy_ext.sparse.ir import renumber

        return renumber(dataclasses.replace(graph, nodes=tuple(nodes)))
    dims = transpose.dims
    return _nodes(
        graph, lambda node: dataclasses.replace(node, dims=(dims[0], dims[2], dims[1], *dims[3:])), Transpose
    )


# ---- the other order of axes: libspconv's toy is written in it

for _name, _make in {
    'the other order: kernels are mirrored': _square(lambda weight: weight[:, ::-1]),
    'the other order: kernels stay': _square(lambda weight: weight.swapaxes(1, 3)),
    'the other order: stride stays': _convolutions(lambda node: dict(stride=node.stride[::-1])),
}.items():
    planted(_name, 'sparse_libspconv', (ORDER, _make))

# ---- the rulebook


def _tables(change: Callable[[np.ndarray, Any, Any], np.ndarray]) -> Callable:
    """Return a fault of the tables: table (K, M), its plan, and the book."""

    def wrong(book: Any, plan: Any, *_: Any) -> Any:
        tables = {table.name: change(book.tables[table.name].copy(), table, book) for table in plan.tables}
        return dataclasses.replace(book, tables=tables)

    return result(wrong)


def _none(table: Any, book: Any) -> int:
    return len(book.levels[table.level_in])


def _exchanged(rows: np.ndarray, *_: Any) -> np.ndarray:
    return rows[[1, 0, *range(2, len(rows))]] if len(rows) > 2 else rows


def _without(axis: int, last: bool) -> Callable:
    """Return a change of tables: sites at an end of an axis are no neighbours."""

    def change(rows: np.ndarray, table: Any, book: Any) -> np.ndarray:
        level = book.levels[table.level_in]
        place = level.spatial_shape[axis] - 1 if last else 0
        lost = np.append(level.coordinates[:, axis + 1] == place, False)
        return np.where(lost[rows], len(level), rows).astype(rows.dtype)

    return change


def _strided(change: Callable) -> Callable:
    return lambda rows, table, book: rows if table.subm else change(rows, table, book)


for _name, _change in {
    'rulebook: two neighbours have changed places': _exchanged,
    'rulebook: neighbours in the order from the last': lambda rows, *_: rows[::-1],
    'rulebook: sites at the end of the first axis are no neighbours': _without(0, True),
    'rulebook: sites at the beginning of the last axis are no neighbours': _without(2, False),
    'rulebook: a site is not its own neighbour': lambda rows, table, book: (
        np.where((np.arange(len(rows)) == len(rows) // 2)[:, None], _none(table, book), rows).astype(
            rows.dtype
        )
        if table.subm
        else rows
    ),
    'rulebook: the last offset of strided kernels is missing': _strided(
        lambda rows, table, book: np.where(
            (np.arange(len(rows)) == len(rows) - 1)[:, None], _none(table, book), rows
        ).astype(rows.dtype)
    ),
    'rulebook: the last site has no neighbour': lambda rows, table, book: np.where(
        np.arange(rows.shape[1]) == rows.shape[1] - 1, _none(table, book), rows
    ).astype(rows.dtype),
}.items():
    planted(_name, BOTH, (BUILD, _tables(_change)))
planted(
    'rulebook: cells of the map are numbered column by column',
    'sparse_portable',
    (
        BUILD,
        result(
            lambda book, plan, *_: dataclasses.replace(
                book, cells={scatter.name: _by_columns(book, scatter) for scatter in plan.scatters}
            )
        ),
    ),
)


def _by_columns(book: Any, scatter: Any) -> np.ndarray:
    level = book.levels[scatter.level]
    cells = np.zeros(len(level), np.int64)
    first, *others = scatter.axes
    for axis in (first, *others[::-1]):
        cells = cells * level.spatial_shape[axis] + level.coordinates[:, axis + 1]
    return cells


# ---- portable files

planted(
    'sites without a neighbour in the middle have no bias',
    'sparse_portable',
    (
        f'{WRITER}.constant',
        arguments(lambda self, name, values: (self, name, values * (0 if name.endswith('.bias_row') else 1))),
    ),
)
planted(
    'biases count once per group of offsets',
    'sparse_portable',
    (
        f'{WRITER}.constant',
        arguments(lambda self, name, values: (self, name, values * (3 if name.endswith('.bias') else 1))),
    ),
)
planted(
    'weights in float16',
    'sparse_portable',
    (
        PORTABLE,
        lambda original: (
            lambda graph, **options: original(
                _nodes(graph, lambda node: dataclasses.replace(node, weight=node.weight.astype(np.float16))),
                **options,
            )
        ),
    ),
)


def _feeds(change: Callable[[str, np.ndarray], np.ndarray]) -> tuple[str, Callable]:
    return FEEDS, result(lambda arrays, *_: {name: change(name, array) for name, array in arrays.items()})


planted(
    'buckets: the row of zeros is the last site',
    'sparse_portable',
    (
        FEEDS,
        result(
            lambda arrays, plan, book, *_: {
                name: np.minimum(
                    array,
                    _none(next(table for table in plan.tables if name == f'{table.name}.rows'), book) - 1,
                )
                .clip(0)
                .astype(array.dtype)
                if name.endswith('.rows')
                else array
                for name, array in arrays.items()
            }
        ),
    ),
)
planted(
    'buckets: the first two offsets of each have changed places',
    'sparse_portable',
    _feeds(lambda name, array: _exchanged(array) if name.endswith('.offsets') else array),
)
planted(
    'buckets: results of a group are taken from the row before',
    'sparse_portable',
    _feeds(lambda name, array: (array - 1).clip(0) if name.endswith('.position0') else array),
)
planted(
    'features in float16',
    'sparse_portable',
    (
        'mmdeploy_ext.families.parts.runtime.sparse_encoder:ScnOnnx.feeds',
        arguments(
            lambda self, features, sites: (self, features.astype(np.float16).astype(np.float32), sites)
        ),
    ),
)
planted(
    'axes of voxels in the other order',
    'sparse_portable',
    (
        'mmdeploy_ext.families.parts.runtime.sparse_encoder:ScnOnnx.feeds',
        arguments(lambda self, features, sites: (self, features, sites[:, [0, 2, 1, 3]])),
    ),
)

# ---- libspconv files


def _written(change: Callable[[SparseConvolution], dict]) -> tuple[str, Callable]:
    """Return a fault of the writer alone."""
    return (
        DIALECT,
        lambda original: (
            lambda graph, *rest: original(
                _nodes(graph, lambda node: dataclasses.replace(node, **change(node))), *rest
            )
        ),
    )


planted(
    'room for 64 active sites',
    'sparse_libspconv',
    _written(lambda node: dict(output_bound=64)),
    in_graph=True,
)
planted(
    'the activation is written in small letters',
    'sparse_libspconv',
    _written(lambda node: dict(activation=node.activation.lower())),
    in_graph=True,
)
planted(
    'all submanifold layers have one rulebook',
    'sparse_libspconv',
    (NAMES, _convolutions(lambda node: dict(rulebook='subm1') if node.subm else {})),
)
planted(
    'strided layers have the rulebook of the layer before',
    'sparse_libspconv',
    (NAMES, _convolutions(lambda node: {} if node.subm else dict(rulebook='subm1'))),
)
planted(
    'biases are written before folding',
    'sparse_libspconv',
    _written(lambda node: dict(bias=np.zeros_like(node.bias))),
    in_graph=True,
)
planted(
    'weights of the order from the input channel',
    'sparse_libspconv',
    _written(
        lambda node: (
            dict(weight=node.weight.transpose(4, 1, 2, 3, 0))
            if node.weight.shape[0] == node.weight.shape[4]
            else {}
        )
    ),
    in_graph=True,
)

# ---- what the metadata tell


def _fact(key: str, change: Callable[[Any], Any]) -> tuple[str, Callable]:
    import json

    def wrong(props: dict[str, str], *_: Any) -> dict[str, str]:
        return {**props, f'mm2onnx.{key}': json.dumps(change(json.loads(props[f'mm2onnx.{key}'])))}

    return FACTS, result(wrong)


planted(
    'the metadata tell another order of voxels',
    BOTH,
    _fact('voxels', lambda voxels: {**voxels, 'order': voxels['order'][::-1]}),
    shared=True,
)
planted(
    'the metadata tell a range that begins at zero',
    BOTH,
    _fact(
        'voxels', lambda voxels: {**voxels, 'point_cloud_range': [0.0, 0.0, *voxels['point_cloud_range'][2:]]}
    ),
    shared=True,
)
planted(
    'the metadata tell half as many points of a voxel',
    BOTH,
    _fact('voxels', lambda voxels: {**voxels, 'max_points': voxels['max_points'] // 2}),
    shared=True,
)
planted(
    'the metadata tell voxels of another height',
    BOTH,
    _fact('voxels', lambda voxels: {**voxels, 'voxel_size': [*voxels['voxel_size'][:2], 0.4]}),
    shared=True,
)
planted(
    'the metadata tell as many voxels as in training',
    BOTH,
    _fact('voxels', lambda voxels: {**voxels, 'max_voxels': 2000}),
    shared=True,
)
