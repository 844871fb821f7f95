"""Simulation of int8 and fp16 in a sparse graph, on a CPU.

Inputs and kernels of a layer are rounded to the precision; products and sums are computed in fp32.

Glossary: N voxels, C values of a voxel.
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
    """An assumption about an engine that the file does not decide.

    Attributes:
        title: name for tables.
        ties: see `fake_quantise`.
        stored: whether a tensor is stored in int8 once, by the range of its first reader, and every reader
            rounds that again by its range; otherwise every reader rounds the exact value.
        fp16_kernels: whether int8 codes are computed from the fp16 kernel of the file; otherwise from the
            fp32 kernel.
    """

    title: str
    ties: str = 'even'
    stored: bool = False
    fp16_kernels: bool = True


DEFAULT = Assumption('as in the tables')
"""The assumption of all figures that name no other."""


class Simulation:
    """Runs a folded graph whose layers are rounded.

    Attributes:
        names: names of the nodes that have ranges.
        first_readers: tensor id -> the first of these nodes that reads it, if `assumption.stored`.
        fp16_kernels, int8_kernels: node name -> rounded kernel.
    """

    def __init__(self, graph: SparseGraph, ranges: Ranges, assumption: Assumption = DEFAULT) -> None:
        self.graph, self.ranges, self.assumption = graph, ranges, assumption
        self.names = tuple(node.name for node in quantised(graph))
        self.first_readers: dict[str, str] = {}
        if assumption.stored:
            for node in quantised(graph):
                for tensor in node.inputs:
                    self.first_readers.setdefault(tensor, node.name)
        kernels = {node.name: node.weight for node in graph.convolutions()}
        self.fp16_kernels = {name: fake_half(kernel) for name, kernel in kernels.items()}
        self.int8_kernels = {
            name: fake_quantise_kernel(kernel, ranges.weight_amax(name), assumption.ties)
            for name, kernel in (self.fp16_kernels if assumption.fp16_kernels else kernels).items()
        }

    def rounded(
        self, node: Node, inputs: tuple[np.ndarray, ...], int8_nodes: Collection[str]
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Return inputs and kernel of a node rounded to int8 if it is one of `int8_nodes`, else to fp16."""
        if node.name not in int8_nodes:
            return tuple(map(fake_half, inputs)), self.fp16_kernels.get(node.name)
        ties, rounded_inputs = self.assumption.ties, []
        for tensor, values in zip(node.inputs, inputs, strict=True):
            reader = self.first_readers.get(tensor, node.name)
            if reader != node.name:
                values = fake_quantise(values, self.ranges.input_amax(reader), ties)
            rounded_inputs.append(fake_quantise(values, self.ranges.input_amax(node.name), ties))
        return tuple(rounded_inputs), self.int8_kernels.get(node.name)

    def prepare(self, features: np.ndarray, coordinates: np.ndarray) -> Prepared:
        """Return a sweep, features (N, C) and coordinates (N, 4), with its rulebook."""
        return Prepared(features, coordinates, build(plan_of(self.graph), coordinates))

    def tensors(
        self,
        sweep: Prepared,
        int8_nodes: Collection[str] | None = None,
        fed: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return tensor id -> value of one run, with the features as '0'.

        Args:
            sweep: result of `prepare`.
            int8_nodes: nodes in int8, the others are in fp16; None computes all in fp32.
            fed: tensor id -> value that nodes take as input in place of the computed one; None feeds the
                computed ones.
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
        """Return the dense output of one run on a sweep of `prepare`.

        The nodes that are not `int8_nodes` are in `float_precision`, 'fp16' or 'fp32'. `fed` is that of
        `tensors`; `observe`, if it is not None, is called with name and output of each node.
        """

        def transform(node, inputs, weight):  # noqa: ANN001, ANN202
            if fed is not None:
                inputs = tuple(fed[name] for name in node.inputs)
            if node.name not in self.names or (float_precision == 'fp32' and node.name not in int8_nodes):
                return inputs, weight
            return self.rounded(node, inputs, int8_nodes)

        dense = engine.run(self.graph, sweep.coordinates, sweep.features, observe, transform, sweep.rulebook)
        return dense if float_precision == 'fp32' else fake_half(dense)
