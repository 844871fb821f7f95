"""Simulation of int8 and fp16 in a sparse graph on a CPU: inputs and kernels are rounded, sums fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmdeploy_ext.exporting.int8.calibrators import fake_half, fake_quantise, fake_quantise_kernel
from mmdeploy_ext.exporting.sparse.ranges import quantised
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.runtime.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.runtime.sparse.rulebook import Rulebook


class Prepared(NamedTuple):
    """One sweep, features (N, C) and coordinates (N, 4), with its rulebook."""

    features: np.ndarray
    coordinates: np.ndarray
    rulebook: Rulebook


class Simulation:
    """Runs a folded graph with rounded layers.

    int8 codes come from the file's fp16 kernels, ties go to the even code, nodes round a tensor's exact
    value.

    Attributes:
        names: nodes with ranges.
        fp16_kernels, int8_kernels: convolution -> rounded kernel, float32.
    """

    def __init__(self, graph: SparseGraph, ranges: Ranges) -> None:
        self.graph, self.ranges = graph, ranges
        self.names = tuple(node.name for node in quantised(graph))
        self.fp16_kernels = {node.name: fake_half(node.weight) for node in graph.convolutions()}
        self.int8_kernels = {
            name: fake_quantise_kernel(kernel, ranges.weight_amax(name))
            for name, kernel in self.fp16_kernels.items()
        }

    def rounded(
        self, node: Node, inputs: tuple[np.ndarray, ...], int8_nodes: Collection[str]
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Inputs and kernel of a node as float32, rounded to int8 for `int8_nodes`, else to fp16."""
        if node.name not in int8_nodes:
            return tuple(map(fake_half, inputs)), self.fp16_kernels.get(node.name)
        amax = self.ranges.input_amax(node.name)
        return tuple(fake_quantise(values, amax) for values in inputs), self.int8_kernels.get(node.name)

    def prepare(self, features: np.ndarray, coordinates: np.ndarray) -> Prepared:
        return Prepared(features, coordinates, build(plan_of(self.graph), coordinates))

    def tensors(
        self,
        sweep: Prepared,
        int8_nodes: Collection[str] | None = None,
        fed: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Tensor id -> float32 value of one run; features: '0'.

        `int8_nodes` run in int8, others of `names` in fp16; None: fp32. `fed` replaces inputs by
        tensor id.
        """
        outputs = {node.name: node.output for node in self.graph.nodes}
        tensors = {'0': sweep.features.astype(np.float32)}

        def observe(name: str, values: np.ndarray) -> None:
            tensors[outputs[name]] = values

        float_precision = 'fp32' if int8_nodes is None else 'fp16'
        tensors[self.graph.output] = self.output(sweep, int8_nodes or (), float_precision, fed, observe)
        return tensors

    def output(
        self,
        sweep: Prepared,
        int8_nodes: Collection[str],
        float_precision: str,
        fed: Mapping[str, np.ndarray] | None = None,
        observe: Callable[[str, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Dense output (1, channels, H, W) float32 of one run; other nodes are in `float_precision`."""

        def transform(node, inputs, weight):  # noqa: ANN001, ANN202
            if fed is not None:
                inputs = tuple(map(fed.get, node.inputs, inputs))
            if node.name not in self.names or (float_precision == 'fp32' and node.name not in int8_nodes):
                return inputs, weight
            return self.rounded(node, inputs, int8_nodes)

        dense = engine.run(self.graph, sweep.coordinates, sweep.features, observe, transform, sweep.rulebook)
        return dense if float_precision == 'fp32' else fake_half(dense)
