"""Nodes of a sparse graph in the making, and which tensor object is which tensor of the graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.sparse.ir import SparseConvolution

if TYPE_CHECKING:
    from mmdeploy_ext.sparse.ir import Node, Triple


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: its id.
        sparse: features of active sites (N, C), not a dense tensor.
        problem: why the graph cannot have it, or ''.
    """

    name: str
    sparse: bool = False
    problem: str = ''


class UnsupportedOperatorError(Exception):
    """A function that the dialect has no operation for; the message continues 'MODULE: '."""


class Values:
    """Nodes of one forward pass, and the tensors that went into them.

    Attributes:
        nodes: in the order in which they ran.
        order: axis order of the coordinates.
    """

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
        """Return what a tensor is in the graph.

        Raises:
            ExportError: it does not come from the voxels, or by something that the dialect cannot express.
        """
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
        module = fields.pop('module', self.path)
        names = tuple(value.name for value in inputs)
        if sparse and node_type is not SparseConvolution:
            self._sites[output] = self._sites[names[0]]
        self.nodes.append(node_type(name=output, module=module, inputs=names, output=output, **fields))
        return Value(output, sparse=sparse)

    @property
    def path(self) -> str:
        """Path of the module that runs; '' is the encoder itself."""
        return self._path[-1] if self._path else ''

    def lookup(self, tensor: object) -> Value:
        """Return the value of an operand of a function.

        Raises:
            UnsupportedOperatorError: it is not tracked.
        """
        value = self._value(tensor)
        if value is None:
            raise UnsupportedOperatorError('combines the voxels with something that does not come from them')
        return value
