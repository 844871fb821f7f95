"""The errors of int8 and fp16 in a sparse graph, layer by layer, simulated on a CPU.

Four runs per sweep: fp32; fp16; int8; and int8 with every layer fed by the fp32 run, which shows the error
that a layer adds. docs/int8.md says what this can and cannot tell about an engine.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.quantize import tracked
from mmdeploy_ext.quantize.calibrators import LEVELS
from mmdeploy_ext.quantize.difference import Difference, severity
from mmdeploy_ext.quantize.simulation import Simulation
from mmdeploy_ext.sparse.ranges import quantised

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mmdeploy_ext.quantize.simulation import Prepared
    from mmdeploy_ext.quantize.sparse_calibration import Sweep
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges

TARGET = 0.999
"""Cosine of the network's output with fp32's that advice aims at; NVIDIA reports 0.9988 to 0.99999."""
MAX_FP16_LAYERS = 8
"""Layers that advice keeps in fp16 at most."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The errors of one layer.

    Attributes:
        name: name of the node.
        module: path of the module that it comes from.
        int8: difference of its output in the int8 network, with the errors of all layers before it.
        local: difference of its output in int8 if it is fed by the fp32 run.
        fp16: difference of its output in the fp16 network.
        clipped: share of the values of its input, or of both inputs of an addition, that are more than half a
            step beyond the range.
        output: difference of the network's output if only this layer is int8, all others fp32; None if not
            measured.
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
        """Error of the network's output if only this layer is int8; of the layer's output if not measured.

        NaN counts as infinite.
        """
        return severity(self.local.error if self.output is None else self.output.error)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as plain JSON types, `local` as `own`.

        Differences are dicts with `cosine`, `error`, `largest_error` and `largest`; `output` may be None.
        """
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
        rows: one per convolution and addition, in order.
        int8, fp16: difference of the network's output, over all sweeps.
        fp16_layers: layers that advice keeps in fp16, with the cosine of the first sweep's output after each.
        sweeps: number of sweeps that have a voxel.
        target: cosine that advice aimed at.
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
        """Return the rows, those of the most sensitive layers first."""
        return sorted(self.rows, key=lambda row: row.sensitivity, reverse=True)

    def advice(self) -> tuple[str, ...]:
        """Return the names of the layers to keep in fp16.

        There is none if int8 reaches the target without on the first sweep, if advice was not asked for, or
        if no layer is in int8. The target may not be reached with them: they are `MAX_FP16_LAYERS` at most.
        """
        return tuple(name for name, _ in self.fp16_layers)

    def advice_text(self) -> str:
        """Return the advice as one sentence or two: the layers to keep in fp16, or why there are none.

        They begin with the cosines of the output over all sweeps; those after each layer are of the first.
        """
        start = f'int8 gives the output a cosine of {self.int8.cosine:.5f} (fp16: {self.fp16.cosine:.7f})'
        if not self.fp16_layers:
            if self.int8.cosine >= self.target:
                return f'{start}; no layer has to stay fp16'
            if any(row.output is not None for row in self.rows):
                return (
                    f'{start}; the first sweep, which advice is made from, reaches the target: give another'
                )
            return f'{start}; advice was not asked for, or no layer is in int8'
        steps = ', '.join(f'{name} ({cosine:.5f})' for name, cosine in self.fp16_layers)
        reached = self.fp16_layers[-1][1] >= self.target
        end = '' if reached else f'; the target of {self.target:g} is not reached'
        return f'{start}. Keep in fp16, cosine after each: {steps}{end}'

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as plain JSON types; `keep_fp16` is `fp16_layers`, and `layers` the rows."""
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
        graph: folded graph. Nodes whose precision is 'fp16' stay fp16 in the int8 network.
        ranges: ranges of this graph.
        sweeps: features (N, C) and coordinates (N, 4) of voxels each, see `engine.run`; one without a
            voxel shows nothing and is left out. Memory is that of all activations of one sweep.
        target: cosine of the output that advice aims at.
        advise: also run the first sweep with each layer alone in int8, and choose the layers to keep in fp16.
            It takes the time of about 30 more runs.

    Raises:
        UsageError: ranges of another graph, or incomplete ones.
        DataError: no sweep with a voxel.
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
            # from half a step above the range on, a value rounds beyond the last code
            limit = ranges.input_amax(node.name) * (1 + 0.5 / LEVELS)
            for name in node.inputs:
                clipped[node.name] += int((np.abs(reference[name]) > limit).sum())
                sizes[node.name] += reference[name].size
    if first is None:
        raise DataError(
            'fidelity: has no sweep to compare on, or none with a voxel in the range of the model; give a '
            'folder or an infos file that has some'
        )
    single_layer, fp16_layers = {}, ()
    if advise:
        sweep, reference = first
        single_layer = {name: Difference() for name in simulation.names if name in int8_names}
        for name in tracked(single_layer, 'each layer alone'):
            single_layer[name].add(reference, simulation.output(sweep, {name}, 'fp32'))
        fp16_layers = _choose_fp16_layers(simulation, *first, single_layer, target)
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


def _choose_fp16_layers(
    simulation: Simulation,
    sweep: Prepared,
    reference: np.ndarray,
    single_layer: Mapping[str, Difference],
    target: float,
) -> tuple[tuple[str, float], ...]:
    """Keep the most sensitive layers in fp16, one after the other, until the cosine reaches the target."""
    fp16_layers: list[tuple[str, float]] = []
    int8_layers = set(single_layer)
    most_sensitive = sorted(single_layer, key=lambda name: severity(single_layer[name].error), reverse=True)
    for name in (None, *most_sensitive[:MAX_FP16_LAYERS]):
        int8_layers.discard(name)
        difference = Difference()
        difference.add(reference, simulation.output(sweep, int8_layers, 'fp16'))
        if name is not None:
            fp16_layers.append((name, difference.cosine))
        if difference.cosine >= target:
            break
    return tuple(fp16_layers)
