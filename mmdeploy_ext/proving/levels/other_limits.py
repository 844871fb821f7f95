"""Level 3 of the post-processing, exported with other limits, against upstream's with the same limits.

Limits (of rows in a list, such as the proposals or the results) and thresholds are constants of a graph, or
entries of the metadata if a graph ends before them, and few pictures reach them. With lower ones every list
is cut off, with higher ones rows come in that no picture had. Both sides get the outputs of the same network
for the traced picture, so that only the post-processing can differ: every row counts, however low its score.
Where the network of the file itself runs (`Trials.runs_file`), the reference has PyTorch's outputs of it.

A list has the name '' if it holds the results, else a name of its own, such as that of the proposals.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting import files
from mmdeploy_ext.families.limits import Kind, changed, lowered, raised, with_few_rows
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.levels.attempts import FAILURES, failed_detections
from mmdeploy_ext.proving.near_ties import near_ties
from mmdeploy_ext.proving.part_outputs import PartOutputs, content_of
from mmdeploy_ext.proving.results import Case
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.runtime.panoptic import OFFSET

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.stages import Stage
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.families.limits import Limit
    from mmdeploy_ext.proving.references import ImageReference
    from mmdeploy_ext.proving.results import DetectionRow

    Values = list[tuple[Limit, Any]]
    """Limits with their new values; of several values of one limit the last counts."""

SHARES = (1.0, 0.2, 0.05)
"""Factors of a threshold of scores, tried in turn until there are enough rows; the second is that of a trial
with lowered limits, too."""
STEP = 2.0
"""Factor by which such a factor grows if there are too many rows."""
MAX_BOXES = 2500
"""Boxes up to which a limit is raised by more than `raised` does: more outlast the rest of a proof."""
MAX_MASK_PIXELS = 1 << 24
"""Pixels of all masks together up to which it is raised so, for the same reason."""
MAX_LAYER_BYTES = 1 << 28
"""Bytes of a layer's outputs for all results together up to which it is raised so.

A head holds several such outputs at a time, and each engine its own. With few candidates a model with 80
classes has some thousands of results: where Grid R-CNN ran its layers on each of them, the process grew from
3 GB to more than 8 GB.
"""
MIN_GAP = 2e-5
"""Smallest difference of the scores on both sides of a threshold: rounding changes them by far less."""
COVERED_FROM, COVERED_STEP = 0.95, 1.02
"""The largest share of a mask that may be covered in the search of `Trial.with_covered_share` (the smallest
is 1 minus that), and the ratio of its bounds at which the search ends."""
PASSING = (0.75, 0.5, 0.25, 0.125)
"""Shares of the scores of a full list, one of which a raised threshold leaves at most."""
BISECTIONS = 12
"""Number of thresholds that are tried at most until one row passes."""
CUT_FROM = 0.95
"""Smallest share of the rows that `cut_at_gap` leaves."""
COUNTED = Kind.ROWS, Kind.SCORE
"""Kinds of limits whose values are chosen by the number of rows that they leave."""


class Trials:
    """The common part of all trials of one file: the model, a picture, and the network's outputs for it.

    Attributes:
        deployment: the model.
        options: options of the exports: a graph of one size, for one picture, in float32.
        file: the graph that is proven, which equals a fresh export; its network runs if it has the modules of
            the reference (`ImageFamily.shares_network`). Otherwise, and if this is None, PyTorch's runs.
        title: title of the picture.
        image: the picture, prepared.
        parts: the outputs of parts of the model, which trials share.
        threads: of the exports, and of `file`, in ONNX Runtime; 0 leaves the choice to it.
    """

    def __init__(
        self,
        deployment: Deployment,
        options: Options,
        picture: tuple[str, np.ndarray],
        file: onnx.ModelProto | None = None,
        threads: int = 0,
    ) -> None:
        changes = dict(batch=1, dynamic=False, dynamic_batch=False, precision='fp32', fp16_io=False)
        fitting = {name: value for name, value in changes.items() if name in options}
        self.deployment, self.options = deployment, options.replace(**fitting, keep_fp32=())
        self.title, image_bgr = picture
        self.image = deploy.prepare_fixed(deployment.rule, image_bgr, options.height, options.width)
        self.file, self.threads = file, threads
        self.parts = PartOutputs(deployment.model, {})
        self._outputs_of_file: dict[Hashable, dict[str, np.ndarray]] = {}

    def fitting_trials(self, *, finds_nothing: bool) -> list[Trial]:
        """Return the trials that fit the model; none if results are not compared, or nothing is limited.

        For a form that ends before the results, the limits are those in the metadata, which the family's
        runtime reads. `finds_nothing` is whether the proof has an input in which PyTorch finds nothing.
        """
        family, model = self.deployment.family, self.deployment.model
        if not self.has_trials:
            return []
        trials: list[Trial] = [LimitsLowered(self)]
        if not self.capped:  # a file with constant shapes has a fixed number of candidates, and no more
            makes_first = family.first and family.first not in family.spec(model, self.options).input_names
            if makes_first and any(limit.list for limit in self.limits):
                trials.append(FirstLimitsRaised(self))
            trials.append(LimitsRaised(self))
            if self.is_full():
                trials.append(ThresholdsRaised(self))
        if not family.finds_always(model):
            trials.append(OnePasses(self))
            if not finds_nothing:
                trials.append(NothingPasses(self))
        return trials

    @property
    def has_trials(self) -> bool:
        """Whether there is any trial: results are compared, and something is limited."""
        family = self.deployment.family
        return not family.results_left_out(self.options) and bool(self.limits)

    @property
    def limits(self) -> list[Limit]:
        """The limits of the model."""
        return self.deployment.family.limits(self.deployment.model)

    @property
    def limit_values(self) -> list[tuple[str, Any]]:
        """Name and present value of every limit; each trial has changed values."""
        return [(limit.name, limit.value) for limit in self.limits]

    def is_full(self) -> bool:
        """Return whether the limit of results fills their list, so that the threshold decides nothing.

        False without such a limit, without a threshold of scores, and for fewer than two results.
        """
        kinds = {limit.kind: limit for limit in self.limits}  # the last of each: of rows, the results'
        if not {Kind.ROWS, Kind.SCORE} <= kinds.keys():
            return False
        last, model = kinds[Kind.ROWS], self.deployment.model
        with self.computed_once():
            scores = self.deployment.family.scores_of(model, [self.image], last.list)
        return len(scores) >= max(last.value, 2)

    @property
    def runs_file(self) -> bool:
        """Whether the network of `file` runs, and not PyTorch's."""
        return self.file is not None and self.deployment.family.shares_network

    @property
    def max_masks(self) -> int:
        """Number of masks of the size of the picture up to which a limit is raised, see `max_results`."""
        return MAX_MASK_PIXELS // math.prod(self.image.ori_shape)

    @property
    def max_results(self) -> int:
        """Number of results up to which a limit is raised, by the pixels of masks and the bytes of layers.

        A model's own limit that is as high is kept by a trial, or changed as `raised` does.
        """
        family, upper_bounds = self.deployment.family, [sys.maxsize]
        if not matches_many(family):
            upper_bounds.append(self.max_masks)
        if bytes_of_one := family.bytes_per_result(self.deployment.model):
            upper_bounds.append(MAX_LAYER_BYTES // bytes_of_one)
        return min(upper_bounds)

    @property
    def capped(self) -> bool:
        """Whether the file was exported with a limit of candidates (`LIMITS` of `contract/options.py`)."""
        return any(self.options.get(name) for name in LIMITS)

    def computed_once(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which parts whose outputs no limit changes run once, see `PartOutputs`."""
        return self.parts.computed_once(self.limits)

    def keep_outputs(self, reference: ImageReference) -> None:
        """Run the reference of the picture, as it is; trials reuse what parts of the model return in it.

        The reference's `seconds` are then without those that keeping these outputs took.
        """
        before_s = self.parts.seconds
        with self.parts.computed_once(self.limits, reuse=False):
            _ = reference.results
        reference.seconds -= self.parts.seconds - before_s

    @property
    def content(self) -> list[Hashable]:
        """What distinguishes these trials from those of other files, but for the file itself."""
        options = sorted(self.options.items())
        return [*content_of((options, self.title, self.image, self.limit_values, self.threads))]

    def lists(self) -> dict[str, Any]:
        """Return the lists of rows of upstream's test path for the picture, by name."""
        with self.computed_once():
            lists = self.deployment.family.lists(self.deployment.model, [self.image], True)
        return {name: images[0] for name, images in lists.items()}

    def near_ties(self, lists: Callable[[], dict[str, Any]], name: str) -> Iterator[Any]:
        """Yield the list `name` of those that `lists` returns, once for each way to decide ties otherwise.

        Thresholds are moved, the family's `rounded_choices` are made, layers round in another way. A row that
        has no partner may have one in such a list, see `near_ties.py`.
        """
        family, model = self.deployment.family, self.deployment.model
        choices = family.rounded_choices(model)
        self.parts.rounding = True
        try:
            yield from (rows[name] for rows in near_ties(model, lists, family.tie_keys, choices))
        finally:
            self.parts.rounding = False

    def run_export(
        self,
        trial: str,
        stages: Sequence[Stage],
        outputs: tuple[TensorSpec, ...],
        feeds: Mapping[str, np.ndarray],
        options: Options,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Metadata]:
        """Export stages behind the network and run them in ONNX Runtime.

        Args:
            trial: name of the trial, which decides, with the limits, what the stages compute.
            stages: the modules; empty if the family's runtime does what follows the network.
            outputs: specs of their outputs; some may be outputs of the network that a file gives as well.
            feeds: name -> input of the file.
            options: of the export of the stages.

        Returns:
            Name -> output of the stages, name -> input of the file or output of the network, and the metadata
            of the export.
        """
        deployment = self.deployment
        inner = {name for stage in stages for name in stage.outputs}
        names = list(dict.fromkeys(name for stage in stages for name in stage.inputs if name not in inner))
        of_network = [tensor.name for tensor in outputs if tensor.name not in inner]
        available = self._network_outputs(feeds, list(dict.fromkeys([*names, *of_network])))
        if stages:
            outputs = tuple(tensor for tensor in outputs if tensor.name not in of_network)
        else:
            names = of_network
        arrays = {name: available[name] for name in names}
        inputs = tuple(TensorSpec(name, str(array.dtype), array.shape) for name, array in arrays.items())
        spec = GraphSpec(f'{deployment.family.name}/{options.form}', inputs, outputs)
        graph = Graph(options.form, None, spec, make=lambda: stages)
        metadata = files.make_metadata(deployment, options, graph)
        if not stages:  # the graph ends with the network: the runtime does the rest
            return {}, available, metadata
        device = next(deployment.model.parameters()).device
        example = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        model = files.export_graph(graph, options, (), example)
        return Runner(model, optimization='basic', threads=self.threads).run(arrays), available, metadata

    def _network_outputs(
        self, feeds: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return the network's outputs `names` for the picture, and the inputs of the file.

        The file's own network runs if the family's graphs have the network of the reference
        (`shares_network`) and there is a file, else PyTorch's. No limit changes what it computes, so that it
        runs once for equal inputs and names.
        """
        family, model = self.deployment.family, self.deployment.model
        contract = family.spec(model, self.options)
        inputs = contract.with_defaults({name: feeds[name] for name in contract.input_names if name in feeds})
        inputs |= {name: feeds[name] for name in names if name in feeds}
        if inputs.keys() >= set(names):
            return inputs
        if not self.runs_file:
            with self.computed_once():
                return inputs | family.network_outputs(model, self.options, feeds)
        computed = [name for name in names if name not in inputs]
        key = (*computed, *content_of(inputs))
        if key not in self._outputs_of_file:
            batch = self.file.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
            runner = Runner(self.file, computed, optimization='basic', threads=self.threads)
            outputs = runner.run({name: np.repeat(array, batch, 0) for name, array in inputs.items()})
            self._outputs_of_file[key] = {name: array[:1] for name, array in outputs.items()}
        return inputs | self._outputs_of_file[key]


class Trial(abc.ABC):
    """One trial: the post-processing with other limits; `case` chooses them and compares the lists.

    Attributes:
        name: begins the name of its case.
        area: new limit of areas over the median area of the picture's stuff; 0 keeps that of `values`.
        covered: how the largest share that better masks may cover is chosen: True: a mask of the picture is
            just accepted; False: it is just rejected; None: the share of `values` is kept.
        trials: the common part of all trials.
    """

    name: ClassVar[str]
    area: ClassVar[float] = 0.0
    covered: ClassVar[bool | None] = None

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self._scores: dict[tuple[str, str], np.ndarray] = {}

    @abc.abstractmethod
    def values(self) -> Values:
        """Return limits of the model with the values of this trial; some values may be the model's own."""

    def expected(self) -> dict[str, Any]:
        """Return upstream's lists, by name."""
        return self.trials.lists()

    def exported(self) -> dict[str, Any]:
        """Return name -> list of results as `Trial.expected` does, of an export in ONNX Runtime."""
        trials, deployment = self.trials, self.trials.deployment
        family, model, images = deployment.family, deployment.model, [self.trials.image]
        feeds, options = family.feeds(images, rescale=True), family.trial_options(model, trials.options)
        stages_and_outputs = family.trial(model, options)
        exported, inputs, metadata = trials.run_export(self.name, *stages_and_outputs, feeds, options)
        (results,) = family.results(model, metadata, inputs | exported, feeds, images, True)
        return {'': results} | family.inner_lists(exported)

    def boxes(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which heads give other boxes; see `ImageFamily.exaggerated`."""
        return contextlib.nullcontext()

    def case(self) -> Case:
        """Choose the limits, export what follows the network with them, and compare every list it gives.

        Where PyTorch's network runs, nothing depends on the file: files of equal `Trials.content` have the
        same case.
        """
        return self._case()

    def _case(self) -> Case:
        shape = 'x'.join(map(str, (1, *self.trials.image.tensor.shape)))
        with self.boxes():
            values = self.with_areas(self.with_covered_share(self.values()))
            final = {(id(limit.config), limit.key): (limit, value) for limit, value in values}
            changes = [(limit, value) for limit, value in final.values() if value != limit.value]
            listed = ', '.join(f'{limit.name} {value:.4g}' for limit, value in changes)
            with changed(values):
                rows = self._compare_lists()
        return Case(f'{self.name}: {listed}', shape, False, detections=rows)

    def with_areas(self, values: Values) -> Values:
        """Return values in which limits of areas are `area` times the median area of the picture's stuff."""
        for limit in self.of_kind(Kind.AREA) if self.area else ():
            with changed([*values, (limit, 1)]):
                segments = self.trials.lists()['']
            areas = np.sort(segments.masks[segments.ids < OFFSET].sum((1, 2)))
            if len(areas):
                values = [*values, (limit, int(self.area * areas[len(areas) // 2]))]
        return values

    def with_covered_share(self, values: Values) -> Values:
        """Return values in which the share that may be covered is close to that of a mask of the picture.

        The search is a bisection: with the smallest share the map has the fewest segments, and with a larger
        one at least as many. If no share adds a segment, the values stay as they are.
        """
        for limit in self.of_kind(Kind.COVERED) if self.covered is not None else ():
            low, high = 1 - COVERED_FROM, COVERED_FROM
            fewest = self._count_segments([*values, (limit, low)])
            if self._count_segments([*values, (limit, high)]) == fewest:
                continue
            while high > low * COVERED_STEP:
                middle = math.sqrt(low * high)
                if self._count_segments([*values, (limit, middle)]) == fewest:
                    low = middle
                else:
                    high = middle
            values = [*values, (limit, high if self.covered else low)]
        return values

    def _count_segments(self, values: Values) -> int:
        """Return the number of segments that upstream's map of the picture has with changed limits."""
        with changed(values):
            return len(self.trials.lists()[''].ids)

    def of_kind(self, *kinds: Kind) -> list[Limit]:
        """Return the model's limits of some kinds."""
        return [limit for limit in self.trials.limits if limit.kind in kinds]

    def few_first(self) -> Values:
        """Return the limits of the list that results are made from with few rows, see `with_few_rows`."""
        return with_few_rows(self.trials.limits, self.trials.deployment.family.first)

    def scores_with(self, values: Values, name: str = '') -> np.ndarray:
        """Return the scores (n,) of upstream's list `name` with changed limits, in descending order.

        The model runs once for the same values.
        """
        trials, final = self.trials, {(id(limit.config), limit.key): value for limit, value in values}
        key = name, repr(sorted(final.items()))
        if key not in self._scores:
            with changed(values), trials.computed_once():
                scores = trials.deployment.family.scores_of(trials.deployment.model, [trials.image], name)
            self._scores[key] = -np.sort(-scores.astype(np.float64))
        return self._scores[key]

    def _compare_lists(self) -> tuple[DetectionRow, ...]:
        """Return a row for every list of the export; called while the model has the changed limits."""
        trials, family = self.trials, self.trials.deployment.family
        expected = self.expected()
        titles = {name: f'{trials.title}: {name}' if name else trials.title for name in expected}
        try:
            exported = self.exported()
            if exported.keys().isdisjoint(expected):
                raise ValueError(f'the export gives none of the lists {", ".join(map(repr, expected))}')
        except FAILURES as error:
            return tuple(failed_detections(titles[name], rows, error) for name, rows in expected.items())
        score_bar = getattr(task_module(family.task), 'SAME_LOGITS_SCORE_BAR', None)
        settings = {} if score_bar is None else dict(score_bar=score_bar)
        if family.ranks_queries(trials.deployment.model):
            settings = dict(settings, ranked=True)
        return tuple(
            task_module(family.first_task if name else family.task).match_detections(
                titles[name],
                rows,
                exported[name],
                score_thr=0.0,
                near_ties=functools.partial(trials.near_ties, self.expected, name),
                **settings,
            )
            for name, rows in expected.items()
            if name in exported  # a graph of regions takes its proposals as an input
        )


def matches_many(family: ImageFamily) -> bool:
    """Return whether the task of a family matches thousands of results quickly, see `MATCHES_MANY`."""
    return getattr(task_module(family.task), 'MATCHES_MANY', False)


class LimitsLowered(Trial):
    """Few candidates of each level, none of which is suppressed, and lists that are cut off.

    `Trial` describes the methods.
    """

    name = 'limits lowered'
    area = 0.98  # the segment is left: a pixel may round to either side
    covered = True

    def values(self) -> Values:
        trials, family = self.trials, self.trials.deployment.family
        few_candidates = bool(self.of_kind(Kind.CANDIDATES))
        share = SHARES[1]
        if trials.capped:
            share = 1.0
        elif few_candidates:  # few candidates are chosen anyway
            share = family.lowest_share
        values = [(limit, lowered(limit)) for limit in trials.limits if limit.kind not in COUNTED]
        values += [(limit, limit.value * share) for limit in self.of_kind(Kind.SCORE)]
        *inner, last = self.of_kind(Kind.ROWS) or [None]
        inner = [limit for limit in inner if not limit.of_list_alone]
        for limit in inner:
            scores = self.scores_with([*values, (limit, limit.available)], limit.list)
            values.append((limit, cut_at_gap(scores, limit.minimum) or lowered(limit)))
        if last is None:
            return values
        # few candidates have few results: the limit is raised so that all of them remain, if so many can be
        # compared
        unlimited = last.value
        if few_candidates:
            unlimited = min(max(last.value, trials.max_results), last.available)
        scores = self.scores_with([*values, (last, unlimited)], last.list)
        return [*values, (last, cut_at_gap(scores, last.minimum) or lowered(last))]


class LimitsRaised(Trial):
    """More candidates and results than the limits of the model let through, and boxes beyond all borders.

    `Trial` describes the methods.
    """

    name = 'limits raised'
    area = 1.02  # the segment is gone
    covered = False

    def boxes(self) -> contextlib.AbstractContextManager[None]:
        return self.trials.deployment.family.exaggerated(self.trials.deployment.model)

    def values(self) -> Values:
        """Return raised limits, and thresholds of scores that are lowered until more rows pass, if needed.

        The limit of the results is above what passes, so that thresholds decide. If at least as many pass as
        can be compared, it cuts some rows off.
        """
        limits = [limit for limit in self.trials.limits if not self._is_first(limit)]
        values = [(limit, raised(limit)) for limit in limits if limit.kind not in COUNTED]
        (last,) = [limit for limit in limits if limit.kind is Kind.ROWS] or [None]
        if last is None:
            return values + self._thresholds(values, '', 0, MAX_BOXES)
        max_results = max(min(MAX_BOXES, self.trials.max_results), raised(last))
        max_rows = min(max_results, last.available)
        values += self._thresholds([*values, (last, max_rows)], last.list, last.value, max_rows)
        return [*values, (last, self._limit(last, [*values, (last, max_rows)], max_rows))]

    def _is_first(self, limit: Limit) -> bool:
        """Return whether a limit is of the list `family.first`, the proposals of the results."""
        return bool(limit.list) and limit.list == self.trials.deployment.family.first

    def _limit(self, limit: Limit, values: Values, max_rows: int) -> int:
        """Return a raised limit of rows: `max_rows` if fewer pass, else one that cuts some off."""
        scores = self.scores_with(values, limit.list)
        if len(scores) < max_rows:
            return max_rows
        return cut_at_gap(scores, limit.value + 1) or min(raised(limit), limit.available, max_rows)

    def _thresholds(self, values: Values, name: str, min_rows: int, max_rows: int) -> Values:
        """Return thresholds of scores that let more than `min_rows` rows of a list in.

        They let in fewer than `max_rows`, unless no threshold does both.
        """
        limits, share = self.of_kind(Kind.SCORE), SHARES[0]
        if not limits:
            return []

        def lower(share: float) -> Values:
            return [(limit, limit.value * share) for limit in limits]

        def count(share: float) -> int:
            return len(self.scores_with([*values, *lower(share)], name))

        for share in SHARES:
            if self._is_enough([*values, *lower(share)], name, min_rows):
                break
        rows = count(share)
        while rows >= max_rows and share < 1 and (fewer := count(min(share * STEP, 1.0))) > min_rows:
            share, rows = min(share * STEP, 1.0), fewer
        return lower(share)

    def _is_enough(self, values: Values, name: str, min_rows: int) -> bool:
        """Return whether a list has enough rows, and other ones than with the model's candidate limits.

        Candidate limits that `values` does not change are those of the list `family.first`, which has a trial
        of its own, or at their maximum: they say nothing about the rows.
        """
        family = self.trials.deployment.family
        scores = self.scores_with(values, name)
        if len(scores) < max(family.trial_rows, min_rows + 1):
            return False
        if not matches_many(family):  # masks are too few to show it
            return True
        unchanged = [
            (limit, limit.value)
            for limit, value in values
            if limit.kind is Kind.CANDIDATES and value != limit.value
        ]
        return not unchanged or not np.array_equal(self.scores_with([*values, *unchanged], name), scores)


class FirstLimitsRaised(LimitsRaised):
    """More rows of the list `family.first` (proposals); only that list is compared, not the results.

    `Trial` describes the methods.
    """

    area = 0.0
    covered = None

    @property
    def name(self) -> str:
        return f'limits of {self.trials.deployment.family.first} raised'

    def boxes(self) -> contextlib.AbstractContextManager[None]:
        return self.trials.deployment.family.exaggerated_first(self.trials.deployment.model)

    def values(self) -> Values:
        limits = [limit for limit in self.trials.limits if self._is_first(limit)]
        values = [(limit, raised(limit)) for limit in limits if limit.kind is not Kind.ROWS]
        for limit in (limit for limit in limits if limit.kind is Kind.ROWS):
            family, model = self.trials.deployment.family, self.trials.deployment.model
            most_rows = family.most_first_rows(model, self.trials.options)
            max_rows = min(max(MAX_BOXES, raised(limit)), most_rows)
            values.append((limit, self._limit(limit, [*values, (limit, max_rows)], max_rows)))
        return values

    def expected(self) -> dict[str, Any]:
        family = self.trials.deployment.family
        with self.trials.computed_once():
            (rows,) = family.first_list(self.trials.deployment.model, [self.trials.image])
        return {family.first: rows}

    def exported(self) -> dict[str, Any]:
        trials, family = self.trials, self.trials.deployment.family
        model, images = trials.deployment.model, [trials.image]
        with trials.computed_once():
            feeds = family.feeds(images, rescale=True) | family.first_inputs(model, images)
        stages_and_outputs = family.first_trial(model, trials.options)
        exported, *_ = trials.run_export(self.name, *stages_and_outputs, feeds, trials.options)
        return family.inner_lists(exported)


class ThresholdsRaised(Trial):
    """A threshold between two scores of a full list, so that the threshold ends the list, not the limit.

    `Trial` describes the methods.
    """

    name = 'thresholds raised'

    def values(self) -> Values:
        """Return a threshold between two scores that are close: with almost any other one, results differ.

        A model may compare its threshold with a score that is multiplied by a factor below 1 afterwards. Then
        more rows pass than the scores of results tell, and a higher threshold is tried.
        """
        *_, last = self.of_kind(Kind.ROWS)
        threshold, *_ = self.of_kind(Kind.SCORE)
        scores = self.scores_with([], last.list)
        for share in PASSING:
            place = int(share * len(scores))
            neighbours = scores[place // 2 : place + 2]
            gaps = neighbours[:-1] - neighbours[1:]
            wide = gaps[gaps >= MIN_GAP]
            index = int(np.argmax(gaps == (wide.min() if len(wide) else gaps.max())))
            values = [(threshold, float(neighbours[index : index + 2].mean()))]
            if len(self.scores_with(values, last.list)) < last.value:
                break
        return values


class OnePasses(Trial):
    """A threshold that only the best row passes: code of lists may fail for one row.

    `Trial` describes the methods.
    """

    name = 'one passes'

    def values(self) -> Values:
        """Return a threshold by bisection, until one row passes or `BISECTIONS` were tried.

        Without a threshold it is the smallest limit of the results, which may be made of few proposals.
        """
        thresholds, fewer = self.of_kind(Kind.SCORE), self.few_first()
        if not thresholds:
            return [*fewer, *((limit, limit.minimum) for limit in self.of_kind(Kind.ROWS)[-1:])]
        threshold, low, high = thresholds[0], thresholds[0].value, 1.0
        for _ in range(BISECTIONS):
            values = [*fewer, (threshold, (low + high) / 2)]
            count = len(self.scores_with(values, threshold.list))
            if count == 1:
                break
            low, high = (values[-1][1], high) if count else (low, values[-1][1])
        return values


class NothingPasses(Trial):
    """Thresholds that no row passes, for a model that finds something in every plain picture.

    `Trial` describes the methods.
    """

    name = 'nothing passes'

    def values(self) -> Values:
        limits = self.trials.limits
        values = [(limit, limit.value_without_rows) for limit in limits]
        return [*self.few_first(), *((limit, value) for limit, value in values if value is not None)]


def cut_at_gap(scores: np.ndarray, minimum: int) -> int:
    """Return a number of rows at which descending scores can be cut: where the gap of two scores is largest.

    It is among the last 5 % of them (`CUT_FROM`) and at least `minimum`, which is 1 or more; 0 if there are
    not more scores than that.
    """
    last = len(scores) - 1
    if last < minimum:
        return 0
    first = max(minimum, int(CUT_FROM * last))
    return first + int(np.argmax(scores[first - 1 : last] - scores[first : last + 1]))
