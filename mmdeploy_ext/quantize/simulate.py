"""A sparse graph run as int8 or fp16 would, in fp32 on a CPU.

Inputs and kernels of a layer are rounded to what the precision holds; products and sums are fp32's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmdeploy_ext.quantize.calibrators import fake_half, fake_quantise, fake_quantise_kernel
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.ranges import quantised
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mmdeploy_ext.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges
    from mmdeploy_ext.sparse.rulebook import Rulebook


class Prepared(NamedTuple):
    """One sweep, features (N, C) and coordinates (N, 4), with its rulebook, which all runs share."""

    features: np.ndarray
    coordinates: np.ndarray
    rulebook: Rulebook


@dataclasses.dataclass(frozen=True)
class Assumption:
    """What an engine may do and the file does not say.

    Attributes:
        ties: see `fake_quantise`.
        stored: a tensor is stored in int8 once, by the range of its first reader, and every reader rounds
            that again by its own range; otherwise every reader rounds the exact value.
        fp16_kernels: int8 codes are made of the file's fp16 kernel; otherwise of the fp32 one.
    """

    title: str
    ties: str = 'even'
    stored: bool = False
    fp16_kernels: bool = True


DEFAULT = Assumption('as in the tables')


class Simulation:
    """Runs a folded graph with layers rounded."""

    def __init__(self, graph: SparseGraph, ranges: Ranges, assumption: Assumption = DEFAULT) -> None:
        self.graph, self.ranges, self.assumption = graph, ranges, assumption
        self.names = tuple(node.name for node in quantised(graph))
        self.stored: dict[str, str] = {}
        """Tensor id -> the first quantised node that reads it, whose range it is stored by."""
        for node in quantised(graph) if assumption.stored else ():
            self.stored = dict.fromkeys(node.inputs, node.name) | self.stored
        kernels = {node.name: node.weight for node in graph.convolutions()}
        self.half = {name: fake_half(kernel) for name, kernel in kernels.items()}
        self.codes = {
            name: fake_quantise_kernel(kernel, ranges.weight_amax(name), assumption.ties)
            for name, kernel in (self.half if assumption.fp16_kernels else kernels).items()
        }

    def rounded(
        self, node: Node, inputs: tuple[np.ndarray, ...], int8: Collection[str]
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Return inputs and kernel as int8, or fp16, holds them."""
        if node.name in int8:
            pairs = zip(node.inputs, inputs, strict=True)
            return tuple(self._codes(node, *pair) for pair in pairs), self.codes.get(node.name)
        return tuple(map(fake_half, inputs)), self.half.get(node.name)

    def _codes(self, node: Node, name: str, values: np.ndarray) -> np.ndarray:
        ties = self.assumption.ties
        first = self.stored.get(name, node.name)
        if first != node.name:
            values = fake_quantise(values, self.ranges.input_amax(first), ties)
        return fake_quantise(values, self.ranges.input_amax(node.name), ties)

    def prepare(self, features: np.ndarray, coordinates: np.ndarray) -> Prepared:
        """Return a sweep with its rulebook."""
        return Prepared(features, coordinates, build(plan_of(self.graph), coordinates))

    def tensors(
        self,
        sweep: Prepared,
        int8: Collection[str] | None = None,
        fed: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return tensor id -> value of one run, and the features as '0'.

        Some nodes are in int8, the others in fp16; None computes all in fp32. Nodes take what they are `fed`
        instead of what was computed.
        """
        outputs = {node.name: node.output for node in self.graph.nodes}
        kept = {'0': sweep.features.astype(np.float32)}

        def observe(name: str, values: np.ndarray) -> None:
            kept[outputs[name]] = values

        others = 'fp32' if int8 is None else 'fp16'
        kept[self.graph.output] = self.output(sweep, int8 or (), others, fed, observe)
        return kept

    def output(
        self,
        sweep: Prepared,
        int8: Collection[str],
        others: str,
        fed: Mapping[str, np.ndarray] | None = None,
        observe: Callable[[str, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Return the dense output with some nodes in int8, the others in 'fp16' or 'fp32'; see `tensors`."""

        def transform(node, inputs, weight):  # noqa: ANN001, ANN202
            if fed is not None:
                inputs = tuple(fed[name] for name in node.inputs)
            if node.name not in self.names or (others == 'fp32' and node.name not in int8):
                return inputs, weight
            return self.rounded(node, inputs, int8)

        given = sweep.coordinates, sweep.features, observe, transform, sweep.rulebook
        result = engine.run(self.graph, *given)
        return result if others == 'fp32' else fake_half(result)
