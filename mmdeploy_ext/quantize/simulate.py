"""A sparse graph run as int8 or fp16 would, in fp32 on a CPU.

Inputs and kernels of a layer are rounded to what the precision holds; products and sums are fp32's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmdeploy_ext.quantize.fake import fake_half, fake_quantise, fake_quantise_kernel
from mmdeploy_ext.quantize.ranges import quantised
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mmdeploy_ext.quantize.ranges import Ranges
    from mmdeploy_ext.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.sparse.rulebook import Rulebook


class Prepared(NamedTuple):
    """One sweep.

    Attributes:
        features: (N, C).
        coordinates: (N, 4).
        rulebook: of the coordinates.
    """

    features: np.ndarray
    coordinates: np.ndarray
    rulebook: Rulebook


class Simulation:
    """Runs a graph with layers rounded.

    Args:
        graph: folded.
        ranges: of all its nodes.
    """

    def __init__(self, graph: SparseGraph, ranges: Ranges) -> None:
        self.graph = graph
        self.names = tuple(node.name for node in quantised(graph))
        self.ranges = ranges
        # the file stores fp16 kernels, and the engine quantises those
        self.half = {node.name: fake_half(node.weight) for node in graph.convolutions()}
        self.codes = {
            name: fake_quantise_kernel(kernel, ranges.weight_amax(name)) for name, kernel in self.half.items()
        }

    def rounded(
        self, node: Node, inputs: tuple[np.ndarray, ...], int8: Collection[str]
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Return inputs and kernel as int8, or fp16, holds them."""
        if node.name in int8:
            amax = self.ranges.input_amax(node.name)
            return tuple(fake_quantise(values, amax) for values in inputs), self.codes.get(node.name)
        return tuple(map(fake_half, inputs)), self.half.get(node.name)

    def prepare(self, features: np.ndarray, coordinates: np.ndarray) -> Prepared:
        """Return a sweep with its rulebook, which all runs share."""
        return Prepared(features, coordinates, build(plan_of(self.graph), coordinates))

    def tensors(
        self,
        sweep: Prepared,
        int8: Collection[str] | None = None,
        fed: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return tensor id -> value of one run, and the features as '0'.

        Args:
            sweep: of `prepare`.
            int8: nodes in int8, the others in fp16; None computes all in fp32.
            fed: tensors that the nodes take instead of what was computed.
        """
        outputs = {node.name: node.output for node in self.graph.nodes}
        kept = {'0': sweep.features.astype(np.float32)}

        def transform(node, inputs, weight):  # noqa: ANN001, ANN202
            if fed is not None:
                inputs = tuple(fed[name] for name in node.inputs)
            if int8 is None or node.name not in self.names:
                return inputs, weight
            return self.rounded(node, inputs, int8)

        def observe(name: str, values: np.ndarray) -> None:
            kept[outputs[name]] = values

        result = self._run(sweep, transform=transform, observe=observe)
        kept[self.graph.output] = result if int8 is None else fake_half(result)
        return kept

    def output(self, sweep: Prepared, int8: Collection[str], others: str) -> np.ndarray:
        """Return the dense output with some nodes in int8 and the others in 'fp16' or 'fp32'."""

        def transform(node, inputs, weight):  # noqa: ANN001, ANN202
            if node.name not in self.names or (others == 'fp32' and node.name not in int8):
                return inputs, weight
            return self.rounded(node, inputs, int8)

        result = self._run(sweep, transform=transform)
        return result if others == 'fp32' else fake_half(result)

    def _run(self, sweep: Prepared, **hooks: Any) -> np.ndarray:
        return engine.run(self.graph, sweep.coordinates, sweep.features, rulebook=sweep.rulebook, **hooks)
