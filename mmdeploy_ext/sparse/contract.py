"""The contract of the libspconv dialect: what NVIDIA's engine would do with a file, without the engine.

`check` reads a file as the engine's parser does (`contract_reader`), then looks for what makes it run and be
wrong: values that cannot be meant (`contract_rules`), nodes that do not fit together (`contract_flow`),
and another order of coordinates than it states (`contract_order`).

What it cannot tell: whether the engine's closed kernels compute what their attributes say, how they round,
and whether the numbers in the file are the right ones; for these the numeric proof compares with spconv.

The dialect is no valid ONNX (`SparseConvolution` in the default domain, `dims` as an attribute of Reshape),
so `onnx.checker` and shape inference do not apply. Needs onnx and numpy only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.graph.io.files import read as load_model
from mmdeploy_ext.sparse.contract_fields import ERROR, WARNING, Violation
from mmdeploy_ext.sparse.contract_flow import Walk, graph_rules
from mmdeploy_ext.sparse.contract_order import order_rules
from mmdeploy_ext.sparse.contract_reader import Reader, attributes_twice
from mmdeploy_ext.sparse.contract_rules import node_rules

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ['ERROR', 'WARNING', 'Violation', 'check', 'errors', 'is_sparse', 'load_model', 'order_of_name']


def order_of_name(name: str | os.PathLike[str]) -> str:
    """Return the coordinate order that a file's name says ('lidar.backbone.xyz.onnx'), '' when none."""
    words = Path(os.fspath(name)).name.lower().split('.')
    return next((order for order in ('xyz', 'zyx') if order in words), '')


def check(
    source: str | os.PathLike[str] | onnx.ModelProto, *, max_voxels: int | None = None, name: str = ''
) -> list[Violation]:
    """Return everything in a file that the engine would not do as it was meant.

    Args:
        source: file or model.
        max_voxels: most voxels of one sweep; an output bound below it is an error. None: the 160,000 of
            the published test configs, as a warning.
        name: file name for a model that has none, e.g. 'lidar.backbone.xyz.onnx'.

    Returns:
        Violations in node order; a good file has none of severity 'error'.

    Raises:
        ModelFileError: missing, empty or corrupt file.
    """
    if not isinstance(source, onnx.ModelProto):
        name = name or os.fspath(source)
        source = load_model(source)
    if not is_sparse(source):
        message = (
            'there is no SparseConvolution: this is not a file of the libspconv dialect (a portable or dense '
            'ONNX?); the engine refuses it'
        )
        return [Violation('', '', 'other-dialect', message)]
    graph = source.graph
    reader = Reader(graph)
    found = [*reader.violations, *attributes_twice(graph)]
    for layer in reader.layers:
        found.extend(node_rules(layer))
    found.extend(graph_rules(graph, reader.layers))
    found.extend(Walk(graph, reader.layers, max_voxels).violations)
    found.extend(order_rules(reader.layers, order_of_name(name) if name else ''))
    places = {layer.name: index for index, layer in enumerate(reader.layers)}
    return sorted(found, key=lambda entry: (places.get(entry.node, -1), entry.severity))


def errors(violations: Sequence[Violation]) -> list[Violation]:
    """Return those of severity 'error'."""
    return [entry for entry in violations if entry.severity == ERROR]
