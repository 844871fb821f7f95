"""What int8 and fp16 do to a sparse graph's numbers, layer by layer, simulated on a CPU.

Four runs per sweep: fp32; fp16; int8; and int8 with every layer fed by the fp32 run, which shows what a layer
adds of its own. docs/int8.md says what this can and cannot tell about an engine; `compare_assumptions` shows
how far it depends on what a file does not say about its engine.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.quantize.calibrate import tracked
from mmdeploy_ext.quantize.calibrators import LEVELS
from mmdeploy_ext.quantize.difference import Difference
from mmdeploy_ext.quantize.simulate import DEFAULT, Assumption, Simulation
from mmdeploy_ext.sparse.ranges import quantised

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mmdeploy_ext.quantize.calibrate import Sweep
    from mmdeploy_ext.quantize.simulate import Prepared
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges

TARGET = 0.999
"""Cosine of the network's output with fp32's that advice aims at; NVIDIA reports 0.9988 to 0.99999."""
MOST_KEPT = 8
"""Layers that advice keeps in fp16 at most."""
ASSUMPTIONS = (
    DEFAULT,
    Assumption('ties away from zero', ties='away'),
    Assumption('every tensor stored in int8 once', stored=True),
    Assumption('codes made of the fp32 kernel', fp16_kernels=False),
    Assumption('all three', 'away', True, False),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        int8: its output in the int8 network, with all that came before it.
        own: its output when it alone is int8: fed by the fp32 run.
        fp16: its output in the fp16 network.
        clipped: share of its input's values beyond the range.
        output: the network's output when only this layer is int8; None where that was not measured.
    """

    name: str
    module: str
    int8: Difference
    own: Difference
    fp16: Difference
    clipped: float
    output: Difference | None = None

    @property
    def sensitivity(self) -> float:
        """Error that the layer does alone: to the network's output, or to its own where that is unknown."""
        error = self.own.error if self.output is None else self.output.error
        return math.inf if math.isnan(error) else error

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        content = {'name': self.name, 'module': self.module, 'clipped': self.clipped}
        for key in ('int8', 'own', 'fp16', 'output'):
            found = getattr(self, key)
            content[key] = None if found is None else found.to_json()
        return content


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """What `fidelity` found.

    Attributes:
        rows: one per convolution and addition, in order.
        int8, fp16: the network's output.
        kept: layers that advice keeps in fp16, with the cosine of the output after each.
        sweeps: how many were run.
        target: cosine that advice aimed at.
    """

    rows: tuple[Row, ...]
    int8: Difference
    fp16: Difference
    kept: tuple[tuple[str, float], ...]
    sweeps: int
    target: float
    calibrator: str

    def worst(self) -> list[Row]:
        """Return the rows, the layers that change the output most first."""
        return sorted(self.rows, key=lambda row: row.sensitivity, reverse=True)

    def advice(self) -> tuple[str, ...]:
        """Return the names of the layers to keep in fp16; none where int8 reaches the target as it is."""
        return tuple(name for name, _ in self.kept)

    def advice_text(self) -> str:
        """Return the advice as one sentence or two."""
        start = f'int8 gives the output a cosine of {self.int8.cosine:.5f} (fp16: {self.fp16.cosine:.7f})'
        if not self.kept:
            reached = self.int8.cosine >= self.target
            return f'{start}; ' + ('no layer has to stay fp16' if reached else 'advice was not asked for')
        steps = ', '.join(f'{name} ({cosine:.5f})' for name, cosine in self.kept)
        end = '' if self.kept[-1][1] >= self.target else f'; the target of {self.target:g} is not reached'
        return f'{start}. Keep in fp16, cosine after each: {steps}{end}'

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            'calibrator': self.calibrator,
            'sweeps': self.sweeps,
            'target': self.target,
            'int8': self.int8.to_json(),
            'fp16': self.fp16.to_json(),
            'keep_fp16': [{'name': name, 'cosine': cosine} for name, cosine in self.kept],
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
        graph: folded. Nodes whose precision is 'fp16' stay fp16 in the int8 network; all others are int8.
        ranges: of this graph.
        sweeps: (features, coordinates) each; memory is that of all activations of one sweep.
        target: cosine of the output that advice aims at.
        advise: also run the first sweep once per layer, to see what each does to the output alone, and find
            the layers to keep in fp16. Takes the time of about 30 more runs.

    Raises:
        UsageError: ranges of another graph, or incomplete ones.
        DataError: no sweep.
    """
    ranges.check(graph)
    fp16 = {node.name for node in quantised(graph) if node.precision == 'fp16'}
    simulation = Simulation(graph, ranges)
    measured = _Measured(graph)
    first = None
    for features, coordinates in tracked(sweeps, 'comparing'):
        sweep = simulation.prepare(features, coordinates)
        reference = simulation.tensors(sweep)
        first = first or (sweep, reference[graph.output])
        measured.add(simulation, sweep, reference, fp16)
    if first is None:
        raise DataError('fidelity: has no sweep to compare on; give a folder or an infos file that has some')
    alone, kept = {}, ()
    if advise:
        alone = _alone(simulation, *first, fp16)
        kept = _advice(simulation, *first, alone, target)
    outputs = measured.int8[graph.output], measured.fp16[graph.output]
    return Fidelity(measured.rows(alone), *outputs, kept, measured.sweeps, target, ranges.calibrator)


class _Measured:
    """Differences of all tensors, summed over sweeps."""

    def __init__(self, graph: SparseGraph) -> None:
        self.graph = graph
        ids = [node.output for node in graph.nodes]
        self.int8, self.own, self.fp16 = ({name: Difference() for name in ids} for _ in range(3))
        self.clipped = {node.name: [0, 0] for node in quantised(graph)}
        self.sweeps = 0

    def add(
        self,
        simulation: Simulation,
        sweep: Prepared,
        reference: Mapping[str, np.ndarray],
        fp16: Collection[str],
    ) -> None:
        """Take one sweep in."""
        self.sweeps += 1
        everything = set(simulation.names)
        int8 = everything - set(fp16)
        runs = ((self.fp16, set(), None), (self.int8, int8, None), (self.own, everything, reference))
        for differences, layers, fed in runs:
            found = simulation.tensors(sweep, layers, fed)
            for name, difference in differences.items():
                difference.add(reference[name], found[name])
        for node in quantised(self.graph):
            # a value rounds beyond the last code from half a step above the range on
            limit = simulation.ranges.input_amax(node.name) * (1 + 0.5 / LEVELS)
            for name in node.inputs:
                self.clipped[node.name][0] += int((np.abs(reference[name]) > limit).sum())
                self.clipped[node.name][1] += reference[name].size

    def rows(self, alone: Mapping[str, Difference]) -> tuple[Row, ...]:
        """Return one row per quantised node."""
        rows = []
        for node in quantised(self.graph):
            beyond, total = self.clipped[node.name]
            found = [table[node.output] for table in (self.int8, self.own, self.fp16)]
            rows.append(Row(node.name, node.module, *found, beyond / max(total, 1), alone.get(node.name)))
        return tuple(rows)


def _alone(
    simulation: Simulation, sweep: Prepared, reference: np.ndarray, fp16: Collection[str]
) -> dict[str, Difference]:
    """Return node name -> the output's difference when only that node is int8 and the others fp32."""
    found = {name: Difference() for name in simulation.names if name not in fp16}
    for name in tracked(found, 'each layer alone'):
        found[name].add(reference, simulation.output(sweep, {name}, 'fp32'))
    return found


def _advice(
    simulation: Simulation,
    sweep: Prepared,
    reference: np.ndarray,
    alone: Mapping[str, Difference],
    target: float,
) -> tuple[tuple[str, float], ...]:
    """Keep the layers that change the output most, one after the other, until the target is reached."""
    kept: list[tuple[str, float]] = []
    left = set(alone)
    for name in (None, *sorted(alone, key=lambda name: alone[name].error, reverse=True)[:MOST_KEPT]):
        left.discard(name)
        found = Difference()
        found.add(reference, simulation.output(sweep, left, 'fp16'))
        if name is not None:
            kept.append((name, found.cosine))
        if found.cosine >= target:
            break
    return tuple(kept)


@dataclasses.dataclass(frozen=True)
class Finding:
    """The output's difference from fp32, and from the simulation as the tables have it."""

    assumption: Assumption
    fp32: Difference
    default: Difference

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            'assumption': dataclasses.asdict(self.assumption),
            'fp32': self.fp32.to_json(),
            'default': self.default.to_json(),
        }


def compare_assumptions(graph: SparseGraph, ranges: Ranges, sweeps: Iterable[Sweep]) -> tuple[Finding, ...]:
    """Run the int8 network once per assumption and sweep; see `fidelity` for the arguments and errors."""
    ranges.check(graph)
    int8 = {node.name for node in quantised(graph) if node.precision != 'fp16'}
    simulations = [Simulation(graph, ranges, assumption) for assumption in ASSUMPTIONS]
    found = [Finding(assumption, Difference(), Difference()) for assumption in ASSUMPTIONS]
    reference = None
    for features, coordinates in tracked(sweeps, 'assuming'):
        sweep = simulations[0].prepare(features, coordinates)
        reference = simulations[0].output(sweep, (), 'fp32')
        outputs = [simulation.output(sweep, int8, 'fp16') for simulation in simulations]
        for finding, output in zip(found, outputs, strict=True):
            finding.fp32.add(reference, output)
            finding.default.add(outputs[0], output)
    if reference is None:
        raise DataError('assumptions: has no sweep to compare on; give a folder or infos that have some')
    return tuple(found)
