"""Errors of int8 and fp16 in a sparse graph, layer by layer, simulated on a CPU.

Per sweep: fp32; fp16; int8; and int8 with each layer fed by fp32. docs/engines.md gives the limits.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmdeploy_ext.base.errors import DataError, escape
from mmdeploy_ext.bench.precision.damage import Difference, severity
from mmdeploy_ext.bench.precision.plan import Search
from mmdeploy_ext.bench.precision.views import table
from mmdeploy_ext.exporting.int8 import tracked
from mmdeploy_ext.exporting.int8.calibrators import LEVELS, fake_half, fake_quantise, fake_quantise_kernel
from mmdeploy_ext.exporting.sparse.ranges import quantised
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from rich.table import Table

    from mmdeploy_ext.bench.precision.sparse_calibration import Sweep
    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.runtime.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.runtime.sparse.rulebook import Rulebook


# Simulation of int8 and fp16 in a sparse graph on a CPU: inputs and kernels are rounded, sums fp32.


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


TARGET = 0.999
"""Target cosine of the output; NVIDIA reports 0.9988 to 0.99999."""
TITLES = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
          'int8 error', 'fp16 error', 'keep')  # fmt: skip
MOST_SHOWN = 8
"""Layers of an advice that does not reach its target."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The errors of one layer.

    Attributes:
        int8: in the int8 network, with errors of all layers before.
        local: in int8, fed by fp32.
        fp16: in the fp16 network.
        clipped: share of input values over half a step beyond the range.
        output: the network's output with only this layer in int8, or None.
    """

    name: str
    module: str
    int8: Difference
    local: Difference
    fp16: Difference
    clipped: float
    output: Difference | None = None

    @property
    def sensitivity(self) -> float:
        """Output error with only this layer in int8, or else the layer's; NaN counts as infinite."""
        return severity(self.local.error if self.output is None else self.output.error)

    def to_json(self) -> dict[str, Any]:
        return dict(
            name=self.name,
            module=self.module,
            clipped=self.clipped,
            int8=self.int8.to_json(),
            own=self.local.to_json(),
            fp16=self.fp16.to_json(),
            output=None if self.output is None else self.output.to_json(),
        )


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """The errors of a network in int8 and fp16.

    Attributes:
        rows: convolutions and additions, in order.
        int8, fp16: of the network's output.
        fp16_layers: to keep in fp16, with the first sweep's cosine after each.
        sweeps: number of sweeps with voxels.
        target: cosine of the advice.
        calibrator: method of the ranges.
    """

    rows: tuple[Row, ...]
    int8: Difference
    fp16: Difference
    fp16_layers: tuple[tuple[str, float], ...]
    sweeps: int
    target: float
    calibrator: str

    def worst(self) -> list[Row]:
        """Rows, most sensitive first."""
        return sorted(self.rows, key=lambda row: row.sensitivity, reverse=True)

    def advice(self) -> tuple[str, ...]:
        """Layers to keep in fp16, by the search of a precision plan; () if int8 reaches the target."""
        return tuple(name for name, _ in self.fp16_layers)

    def advice_text(self) -> str:
        start = f'int8 gives the output a cosine of {self.int8.cosine:.5f} (fp16: {self.fp16.cosine:.7f})'
        if not self.fp16_layers:
            if self.int8.cosine >= self.target:
                return f'{start}; no layer needs to stay fp16'
            if any(row.output is not None for row in self.rows):
                return (
                    f'{start}; the first sweep, which the advice uses, already reaches the target; '
                    'pass another sweep first'
                )
            return f'{start}; advice was not requested, or no layer is in int8'
        steps = ', '.join(f'{name} ({cosine:.5f})' for name, cosine in self.fp16_layers)
        reached = self.fp16_layers[-1][1] >= self.target
        end = '' if reached else f'; the target of {self.target:g} is not reached'
        return f'{start}. Keep in fp16, cosine after each: {steps}{end}'

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `keep_fp16` is `fp16_layers`, `layers` the rows."""
        return {
            'calibrator': self.calibrator,
            'sweeps': self.sweeps,
            'target': self.target,
            'int8': self.int8.to_json(),
            'fp16': self.fp16.to_json(),
            'keep_fp16': [{'name': name, 'cosine': cosine} for name, cosine in self.fp16_layers],
            'layers': [row.to_json() for row in self.rows],
        }


def fidelity(
    graph: SparseGraph,
    ranges: Ranges,
    sweeps: Iterable[Sweep],
    *,
    target: float = TARGET,
    advise: bool = True,
) -> Fidelity:
    """Compare int8 and fp16 with fp32, layer by layer.

    Args:
        graph: folded; nodes with precision 'fp16' stay fp16.
        ranges: of this graph.
        sweeps: features (N, C) and coordinates (N, 4) of voxels, see `engine.run`; empty ones are skipped.
        target: cosine of the advice.
        advise: choose layers to keep in fp16; about 30 more runs of the first sweep.
    """
    ranges.check(graph)
    nodes, simulation = quantised(graph), Simulation(graph, ranges)
    all_names = set(simulation.names)
    int8_names = all_names - {node.name for node in nodes if node.precision == 'fp16'}
    fp16, int8, local = ({node.output: Difference() for node in graph.nodes} for _ in range(3))
    clipped, sizes = dict.fromkeys(simulation.names, 0), dict.fromkeys(simulation.names, 0)
    first, count = None, 0
    for features, coordinates in tracked(sweeps, 'comparing'):
        if not len(features):
            continue
        count += 1
        sweep = simulation.prepare(features, coordinates)
        reference = simulation.tensors(sweep)
        first = first or (sweep, reference[graph.output])
        for differences, int8_nodes, fed in (
            (fp16, (), None),
            (int8, int8_names, None),
            (local, all_names, reference),
        ):
            tensors = simulation.tensors(sweep, int8_nodes, fed)
            for name, difference in differences.items():
                difference.add(reference[name], tensors[name])
        for node in nodes:
            # half a step above the range values round beyond the last code
            limit = ranges.input_amax(node.name) * (1 + 0.5 / LEVELS)
            for name in node.inputs:
                clipped[node.name] += int((np.abs(reference[name]) > limit).sum())
                sizes[node.name] += reference[name].size
    if first is None:
        raise DataError(
            'fidelity: no sweep has a voxel in the range of the model; pass a folder or infos with such '
            'sweeps'
        )
    single_layer, fp16_layers = {}, ()
    if advise:
        single_layer, fp16_layers = _advised(simulation, *first, int8_names, target)
    rows = tuple(
        Row(
            node.name,
            node.module,
            int8[node.output],
            local[node.output],
            fp16[node.output],
            clipped[node.name] / max(sizes[node.name], 1),
            single_layer.get(node.name),
        )
        for node in nodes
    )
    outputs = int8[graph.output], fp16[graph.output]
    return Fidelity(rows, *outputs, fp16_layers, count, target, ranges.calibrator)


def _advised(
    simulation: Simulation, sweep: Prepared, reference: np.ndarray, int8_names: Collection[str], target: float
) -> tuple[dict[str, Difference], tuple[tuple[str, float], ...]]:
    """The output with each layer alone in int8; the layers to keep in fp16, with the cosine after each."""

    def with_fp16(names: Collection[str]) -> Difference:
        return Difference().add(reference, simulation.output(sweep, int8_names - {*names}, 'fp16'))

    alone = {
        name: Difference().add(reference, simulation.output(sweep, {name}, 'fp32'))
        for name in tracked([name for name in simulation.names if name in int8_names], 'each layer alone')
    }
    search = Search(with_fp16, target, criterion=operator.attrgetter('cosine'))
    worst = sorted(alone, key=lambda name: severity(alone[name].error), reverse=True)
    if search.holds(worst):
        needed = search.higher({name: severity(alone[name].error) ** 2 for name in worst})
    else:
        needed = worst[:MOST_SHOWN]
    cosines = (search.tried(needed[: index + 1]).cosine for index in range(len(needed)))
    return alone, tuple(zip(needed, cosines, strict=True))


def fidelity_table(result: Fidelity, limit: int | None = None) -> Table:
    view = table(*TITLES, text_columns=2)
    fp16_layers = set(result.advice())
    for row in result.worst()[:limit]:
        view.add_row(
            row.name,
            escape(row.module),
            f'{row.local.cosine:.6f}',
            f'{row.local.error:.2%}',
            f'{row.clipped:.3%}',
            '-' if row.output is None else f'{row.output.error:.2%}',
            f'{row.int8.cosine:.6f}',
            f'{row.int8.error:.2%}',
            f'{row.fp16.error:.3%}',
            'fp16' if row.name in fp16_layers else '',
        )
    view.add_section()
    figures = f'{result.int8.cosine:.6f}', f'{result.int8.error:.2%}', f'{result.fp16.error:.3%}'
    view.add_row('output', *[''] * 5, *figures, '')
    return view
