"""How far the simulation of int8 depends on what a file does not say about its engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.quantize.calibrate import tracked
from mmdeploy_ext.quantize.difference import Difference
from mmdeploy_ext.quantize.simulate import DEFAULT, Assumption, Simulation
from mmdeploy_ext.sparse.ranges import quantised

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmdeploy_ext.quantize.calibrate import Sweep
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges

ASSUMPTIONS = (
    DEFAULT,
    Assumption('ties away from zero', ties='away'),
    Assumption('every tensor stored in int8 once', stored=True),
    Assumption('codes made of the fp32 kernel', fp16_kernels=False),
    Assumption('all three', 'away', True, False),
)


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
