"""The search for units that stay in a higher precision, and the plan of a file with its reasons."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import itertools
import operator
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError, ExportError, ModelFileError, escape
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.bench.precision.damage import Damage, Measured, counted, units_of
from mmdeploy_ext.bench.precision.results_kept import metric_kept, on_files, rows_judged
from mmdeploy_ext.bench.precision.views import table
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.engines.registry import engine_settings
from mmdeploy_ext.exporting.int8.dense import is_quantised
from mmdeploy_ext.exporting.precision_plan import Plan, Row, written
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.graphs.passes.fp16 import LOWER, of_opset, required_fp32
from mmdeploy_ext.graphs.passes.select import match_patterns, matching_nodes
from mmdeploy_ext.spec.tensors import written_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    from rich.table import Table

    from mmdeploy_ext.exporting.int8.dense import DenseQuantiser
    from mmdeploy_ext.exporting.precision_plan import KeptResults, Models
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import ChosenSamples


# Which units of a network must stay in a higher precision to keep its results.


MOST_TRIALS, MOST_TRIALS_INT8 = 12, 8
"""Maximum of runs over all samples; then the smallest valid plan so far is used.

Layers in INT8 add errors of the same size: after a few runs only chance decides which plan holds.
"""
LARGEST = 1e6
"""Largest size of a unit: infinite errors count the same."""


@dataclasses.dataclass
class Search:
    """A search over units; `run` puts them into the higher precision.

    Attributes:
        run: units in the higher precision -> what the network does then.
        least: smallest allowed `criterion`.
        most: runs.
        criterion: of what `run` returns: the share of the results, or a cosine.
        trials: units -> what `run` returned, in the order of the runs.
    """

    run: Callable[[Collection[str]], Any]
    least: float
    most: int = MOST_TRIALS
    criterion: Callable[[Any], float] = operator.attrgetter('share')
    trials: dict[frozenset[str], Any] = dataclasses.field(default_factory=dict)

    def tried(self, units: Collection[str]) -> Any:
        key = frozenset(units)
        if key not in self.trials:
            self.trials[key] = self.run(units)
        return self.trials[key]

    def holds(self, units: Collection[str]) -> bool:
        return self.criterion(self.tried(units)) >= self.least

    def higher(self, sizes: Mapping[str, float]) -> list[str]:
        """Return the units that need the higher precision, if all of them together hold.

        `sizes`: unit -> what is halved, worst unit first.
        """
        if self.holds(()):
            return []
        units = list(sizes)
        sums = [0.0, *itertools.accumulate(min(size, LARGEST) for size in sizes.values())]
        low, high = 0, len(units)
        while high - low > 1 and len(self.trials) < self.most:
            middle = bisect.bisect_left(sums, (sums[low] + sums[high]) / 2, low + 1, high - 1)
            low, high = (low, middle) if self.holds(units[:middle]) else (middle, high)
        needed = units[:high]
        for group in _halves(needed[:-1][::-1]):  # bisection showed that the last one is needed
            needed = self._without(needed, group)
        return needed

    def _without(self, needed: list[str], group: Sequence[str]) -> list[str]:
        """Return the needed units without units of a group that change nothing."""
        if len(self.trials) >= self.most:
            return needed
        rest = [unit for unit in needed if unit not in group]
        if self.holds(rest):
            return rest
        for half in _halves(group) if len(group) > 1 else ():
            needed = self._without(needed, half)
        return needed


def _halves(units: Sequence[str]) -> list[Sequence[str]]:
    middle = (len(units) + 1) // 2
    return [half for half in (units[:middle], units[middle:]) if half]


SAMPLES = 2
"""Number of samples to measure."""
CHEAP = 0.01
"""Share of the multiplications tried in float32 first: geometry and decoding often suffice."""


def check_single(models: Models) -> None:
    """Raise ModelFileError for a graph already below float32."""
    for path, model in models.items():
        precision = 'int8' if is_quantised(model) else written_precision(model)
        if precision != 'fp32':
            raise ModelFileError(
                f'{path}: is already in {precision}; a plan needs a float32 file: pass the original, or '
                'export again with --precision fp32'
            )


@dataclasses.dataclass
class Planner:
    """Plans the precision of the float32 graphs of one export; `planner_of` makes it.

    Attributes:
        models: path -> graph.
        run: path -> graph to the results it keeps.
        feeds: path -> inputs of its runs.
        keep: patterns of nodes that stay float32.
        quantiser: calibrated, of one of the graphs.
        layers: of the quantiser that may be INT8.
        count: like `run`, on other samples, for the result; None: the search's.
    """

    models: Models
    run: Callable[[Models], KeptResults]
    feeds: Mapping[str, Sequence[Mapping[str, np.ndarray]]]
    keep: Sequence[str] = ()
    quantiser: DenseQuantiser | None = None
    layers: Sequence[str] = ()
    count: Callable[[Models], KeptResults] | None = None

    def __post_init__(self) -> None:
        self._counted: dict[str, dict[str, tuple[int, int]]] = {}
        self._measured: dict[str, Measured] = {}
        self.units: dict[str, dict[str, None]] = {}
        for model in self.models.values():
            for unit, pattern in units_of(model).values():
                self.units.setdefault(unit, {})[pattern] = None
        matching_nodes([node for model in self.models.values() for node in model.graph.node], self.keep)

    def written(self, lower: str, patterns: Sequence[str], layers: Sequence[str] = ()) -> Models:
        """See `exporting.precision_plan.written`."""
        return written(self.models, lower, patterns, layers, self.quantiser)

    def plan(self, precisions: Sequence[str], least: float, before: KeptResults) -> Plan:
        """Find the plan for 'int8', 'fp16' or 'bf16', lowest first; `before`: kept in float32."""
        begin = time.process_time()
        lower = next((name for name in precisions if name in LOWER), 'fp32')
        self.models = {path: of_opset(model, lower) for path, model in self.models.items()}
        rows, trials, patterns, kept = [], 0, [*self.keep], before
        lowest, damages = before, {}
        if lower != 'fp32':
            search = Search(lambda units: self.run(self.written(lower, self._patterns(units))), least)
            cheap = self._cheap(lower)
            is_enough = not search.holds(()) and search.holds(cheap)
            units, start = (cheap, search.tried(cheap)) if is_enough else (list(self.units), before)
            damages, needed = self._searched(search, units, start, lambda: self._damages(lower))
            for path, measured in self._measured.items():
                measured.see_values(needed, self.feeds[path][:SAMPLES])
            patterns, kept, lowest = self._patterns(needed), search.tried(needed), search.tried(())
            trials += len(search.trials)
            rows += [self._row(unit, 'fp32', damages, lower, search, needed) for unit in needed]
        layers: list[str] = []
        if 'int8' in precisions:
            search = Search(
                lambda units: self.run(self.written(lower, patterns, self._int8(units))),
                least,
                MOST_TRIALS_INT8,
            )
            damages, needed = self._searched(search, self.layers, kept, self._damages_of_layers)
            layers, kept, lowest = self._int8(needed), search.tried(needed), search.tried(())
            trials += len(search.trials)
            rows += [self._row(unit, lower, damages, 'int8', search, needed) for unit in needed]
        required = collections.Counter(
            reason
            for model in self.models.values()
            if lower != 'fp32'
            for reason in required_fp32(model, lower).values()
        )
        products, of_unit = self._products(lower, patterns, layers)
        counted = self.count(self.written(lower, patterns, layers)) if self.count else kept
        rows = [dataclasses.replace(row, products=of_unit.get(row.unit, 0.0)) for row in rows]
        return Plan(
            tuple(precisions), least, counted, kept, before, lowest, rows, patterns, layers, dict(required),
            products, trials, time.process_time() - begin,
        )  # fmt: skip

    def _int8(self, without: Sequence[str]) -> list[str]:
        return [layer for layer in self.layers if layer not in without]

    def _patterns(self, units: Sequence[str]) -> list[str]:
        return [
            *self.keep,
            *(pattern for unit in self.units if unit in units for pattern in self.units[unit]),
        ]

    def _cheap(self, lower: str) -> list[str]:
        """Units with the fewest multiplications, `CHEAP` of all together."""
        _, of_unit = self._products(lower, (), ())
        units = sorted(self.units, key=lambda unit: of_unit.get(unit, 0.0))
        ends = itertools.accumulate(of_unit.get(unit, 0.0) for unit in units)
        return [unit for unit, end in zip(units, ends, strict=True) if end <= CHEAP]

    def _searched(
        self,
        search: Search,
        units: Sequence[str],
        before: KeptResults,
        measure: Callable[[], dict[str, Damage]],
    ) -> tuple[dict[str, Damage], list[str]]:
        if search.holds(()):
            return {}, []
        if before.share < search.least:
            raise ExportError(
                f'a share of {search.least:g} cannot be reached: with all modules in the higher precision '
                f'{before.text} are kept, with none {search.tried(()).text}; ask for {before.share:.4f} at '
                f'most, or find what else differs: {tool("verify")}'
            )
        damages = measure()
        worst = sorted((unit for unit in units if unit in damages), key=lambda unit: -damages[unit].weight)
        sizes = {unit: damages[unit].products or damages[unit].weight for unit in worst}
        needed = search.higher(sizes)
        return damages, [unit for unit in units if unit in needed]

    def _counts(self, path: str) -> dict[str, tuple[int, int]]:
        if path not in self._counted:
            self._counted[path] = counted(self.models[path], self.feeds[path][0])
        return self._counted[path]

    def _damages(self, precision: str) -> dict[str, Damage]:
        damages: dict[str, Damage] = {}
        for path, model in self.models.items():
            measured, terms = Measured(model, precision, required_fp32(model, precision)), self._counts(path)
            for feeds in self.feeds[path][:SAMPLES]:
                measured.add(feeds)
            for name, (unit, _) in units_of(model).items():
                damage = measured.units.get(unit, Damage())
                damage.terms = max(damage.terms, terms.get(name, (0, 0))[0])
            damages |= measured.units
            self._measured[path] = measured
        return damages

    def _damages_of_layers(self) -> dict[str, Damage]:
        graph = self.quantiser.graph
        feeds, terms = self.feeds[graph.path], self._counts(graph.path)
        products = {layer.name: sum(terms[output][1] for output in layer.outputs) for layer in graph.layers}
        total = sum(products.values())
        return {
            name: Damage(own=error, products=products[name] / total)
            for name, error in self.quantiser.errors(feeds[:SAMPLES]).items()
        }

    def _row(
        self,
        unit: str,
        precision: str,
        damages: Mapping[str, Damage],
        lower: str,
        search: Search,
        needed: Sequence[str],
    ) -> Row:
        reasons = damages[unit].reasons(lower)
        without = (
            kept for units, kept in search.trials.items() if unit not in units and units >= {*needed} - {unit}
        )
        if lost := min(without, key=lambda kept: kept.share, default=None):
            reasons.append(f'without it {lost.text}')
        return Row(unit, precision, tuple(reasons), 0.0)

    def _products(
        self, lower: str, patterns: Sequence[str], layers: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Share of the multiplications by precision, and by unit."""
        shares: dict[str, float] = collections.defaultdict(float)
        of_unit: dict[str, float] = collections.defaultdict(float)
        layer_of = {
            (self.quantiser.graph.path, output): name
            for name in self.layers
            for output in self.quantiser.graph.layer(name).outputs
        }
        for path, model in self.models.items():
            nodes, units = model.graph.node, units_of(model)
            higher = {place for places in match_patterns(nodes, patterns).values() for place in places}
            higher = {nodes[place].output[0] for place in higher}
            if lower != 'fp32':
                higher |= required_fp32(model, lower).keys()
            for name, (_, products) in self._counts(path).items():
                layer = layer_of.get((path, name), '')
                precision = 'int8' if layer in layers else 'fp32' if name in higher else lower
                shares[precision] += products
                of_unit[layer or units[name][0]] += products
        total = max(sum(shares.values()), 1)
        return (
            {name: share / total for name, share in shares.items() if share},
            {unit: share / total for unit, share in of_unit.items()},
        )


def planner_of(
    detector: Detector,
    files: Sequence[str],
    chosen: ChosenSamples,
    keep: Sequence[str] = (),
    metric: str = '',
    quantiser: DenseQuantiser | None = None,
    layers: Sequence[str] = (),
) -> tuple[Planner, KeptResults]:
    """Return a planner for float32 files, and the results they keep. DataError: too few samples.

    Every other sample is for the search, the rest for its result; samples of the quantiser's calibration are
    left out. `metric` is one of the config's data set, such as 'bbox_mAP', instead of results.
    """
    kind, models = kind_of(detector.family), {path: load(path) for path in files}
    check_single(models)
    engine = engine_settings('onnxruntime') | dict(graph_optimization='basic', round_fp16=True)

    def metric_of(half: int, paths: Sequence[str]) -> KeptResults:
        rows = kind.subject().metrics(detector, paths, [metric.split('_')[0]], engine, half)
        return metric_kept(rows, metric)

    if metric:
        judges = [functools.partial(metric_of, half) for half in (0, 1)]
    else:
        seen = quantiser.seen if quantiser else ()
        rows = kind.rows_kept()(detector, files, chosen.samples, engine, seen)
        judges = [functools.partial(rows_judged, one) for one in rows]
    search, *count = [functools.partial(on_files, files, judge=judge) for judge in judges]
    with record_runs() as runs:
        before = search(models)
    feeds = {path: [run.inputs for run in runs if Path(run.path).name == Path(path).name] for path in files}
    if not all(kept.matched for kept in (before, *(one(models) for one in count))):
        raise DataError(
            f'{detector.config}: model and file find nothing in common on half of these samples: a '
            f'criterion by results needs some; name pictures or sweeps with objects (--images) or train the '
            f'checkpoint'
        )
    return Planner(models, search, feeds, keep, quantiser, layers, next(iter(count), None)), before


def show_plan(plan: Plan) -> None:
    """Print units in a higher precision with reasons, and the results kept."""
    console = cli.stdout()
    if plan.rows:
        console.print(plan_table(plan))
    cli.say(console, plan_text(plan))


def plan_table(plan: Plan) -> Table:
    view = table('module', 'in', 'products', 'why', text_columns=2)
    view.columns[-1].justify, view.columns[-1].overflow = 'left', 'fold'
    for row in plan.rows:
        view.add_row(escape(row.unit), row.precision, f'{row.products:.1%}', '; '.join(row.reasons))
    return view


def plan_text(plan: Plan) -> str:
    """Results of a plan in one line."""
    shares = ', '.join(f'{share:.1%} in {name}' for name, share in plan.products.items())
    required = ', '.join(f'{count} ({reason})' for reason, count in plan.required.items())
    fewer = f' (asked: {plan.least:g}; search on more samples)' if plan.kept.share < plan.least else ''
    return (
        f'kept outside of the search: {plan.kept.text}{fewer}; in the search: {plan.searched.text}, '
        f'with all nodes in {plan.precisions[0]}: {plan.lowest.text}; simulated on a CPU; '
        f'multiplications: {shares}; {plan.trials} runs, {plan.cpu_s:.0f} s of CPU'
        + (f'; nodes that every plan keeps in fp32: {required}' if required else '')
    )
