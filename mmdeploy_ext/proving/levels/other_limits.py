"""What follows the network, exported with other limits, against upstream's with the same.

Limits and thresholds are constants of a graph, or entries of the metadata if a graph ends before them, and
few pictures reach them. With lower ones every list is cut off, with higher ones rows come in that were never
seen. Both sides get what PyTorch's own network gives of the traced picture, so that only the post-processing
can differ: every row counts, however low its score.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting import files
from mmdeploy_ext.families.limits import Kind, changed, lowered, raised
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.levels.run_twice import FAILURES, nothing_found
from mmdeploy_ext.proving.near_ties import near_ties
from mmdeploy_ext.proving.results import Case
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.runtime.panoptic import OFFSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.stages import Stage
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.families.limits import Limit
    from mmdeploy_ext.proving.results import DetectionRow

    Values = list[tuple[Limit, Any]]

SHARES = (1.0, 0.2, 0.05)
"""What a threshold of scores is multiplied by, as long as there are not enough rows,"""
STEP = 2.0
"""and by which of them it grows where there are too many."""
MOST = 2500
"""Boxes that a raised limit leaves at most: more would take longer than the rest of a proof."""
PIXELS = 1 << 24
"""The same of all masks together."""
SCORE_BAR = 1e-5
"""Largest score difference of a matched pair of boxes: both sides have the same logits."""
BOXED = 'bbox2d', 'boxed_mask'
"""Tasks whose results are boxes."""
LEAST_GAP = 2e-5
"""Smallest difference of the scores on both sides of a threshold: rounding changes them by far less."""
COVERED_FROM, COVERED_STEP = 0.95, 1.02
"""The largest share of a mask that may be covered which is tried (the smallest is 1 minus that), and the
ratio of the two shares between which one more mask is laid."""
PASSING = (0.75, 0.5, 0.25, 0.125)
"""Share of the scores of a full list that a raised threshold leaves at most."""
BISECTIONS = 12
"""Thresholds that are tried at most until one row passes."""
CUT_FROM = 0.95
"""Share of the rows that there are of which a limit leaves as many at least."""


class Trials:
    """What the cases of one file have in common: the model, a picture, and what its network gives of it.

    Attributes:
        deployment: the model.
        options: of the exports: a graph of one size, for one picture, in float32.
        file: the graph on trial, which is what the exporter makes.
        title: of the picture.
        image: the picture, prepared.
        rounding: whether layers round otherwise, so that nothing is remembered.
    """

    def __init__(
        self,
        deployment: Deployment,
        options: Options,
        picture: tuple[str, np.ndarray],
        file: onnx.ModelProto | None = None,
    ) -> None:
        changes = dict(batch=1, dynamic=False, dynamic_batch=False, precision='fp32', fp16_io=False)
        fitting = {name: value for name, value in changes.items() if name in options}
        self.deployment, self.options = deployment, options.replace(**fitting, keep_fp32=())
        self.title, image_bgr = picture
        self.image = deploy.prepare_fixed(deployment.rule, image_bgr, options.height, options.width)
        self.file, self.rounding, self._outputs = file, False, {}

    def cases(self, *, finds_nothing: bool) -> list[Trial]:
        """Return what can be run; nothing where results are not compared, or nothing is limited.

        Of a form that ends before the results, the limits are those in the metadata, which the family's
        runtime reads.

        `finds_nothing` is whether the file has run on a picture in which PyTorch finds nothing.
        """
        family, model = self.deployment.family, self.deployment.model
        if family.results_left_out(self.options) or not family.limits(model):
            return []
        trials: list[Trial] = [LimitsLowered(self)]
        if not self.capped:  # a file with constant shapes looks at as many candidates as it says, and no more
            if family.first and any(limit.list for limit in self.limits):
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
    def limits(self) -> list[Limit]:
        """The limits of the model."""
        return self.deployment.family.limits(self.deployment.model)

    def is_full(self) -> bool:
        """Return whether the limit cuts the list of results off, so that it hides the threshold of scores."""
        kinds = {limit.kind: limit for limit in self.limits}  # the last of each
        if not {Kind.ROWS, Kind.SCORE} <= kinds.keys():
            return False
        last, model = kinds[Kind.ROWS], self.deployment.model
        with self.computed_once():
            scores = self.deployment.family.scores_of(model, [self.image], last.list)
        return len(scores) >= max(last.value, 2)

    @property
    def most_masks(self) -> int:
        """Number of masks of the size of the picture that are compared at most."""
        return PIXELS // math.prod(self.image.ori_shape)

    @property
    def capped(self) -> bool:
        """Whether the export has limits of candidates of its own."""
        return any(self.options.get(name) for name in LIMITS)

    @contextlib.contextmanager
    def computed_once(self) -> Iterator[None]:
        """Inside the block the parts of the detector run once per input: no limit changes what they give.

        What is exported is made outside of it.
        """
        model = self.deployment.model
        limiting = {id(limit.config) for limit in self.limits}
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced_entry(vars(model), 'extract_feat', self._once(model.extract_feat)))
            for part in model.children():
                if id(vars(part)) not in limiting:
                    stack.enter_context(replaced_entry(vars(part), 'forward', self._once(part.forward)))
            yield

    def _once(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that keeps what another one gives of the same arguments."""

        def once(*args: Any, **kwargs: Any) -> Any:
            if self.rounding:
                return run(*args, **kwargs)
            key = (run, *_content((args, kwargs)))
            if key not in self._outputs:
                self._outputs[key] = run(*args, **kwargs)
            return _copied(self._outputs[key])

        return once

    def lists(self) -> dict[str, Any]:
        """Return the lists of rows of upstream's test path for the picture, by name."""
        with self.computed_once():
            found = self.deployment.family.lists(self.deployment.model, [self.image], True)
        return {name: images[0] for name, images in found.items()}

    def near_ties(self, name: str) -> Iterator[Any]:
        """Yield a list of upstream's with thresholds moved by rounding, and with other rounding of layers."""
        family, model = self.deployment.family, self.deployment.model
        choices = family.rounded_choices(model)
        self.rounding = True
        try:
            yield from (one[name] for one in near_ties(model, self.lists, family.tie_keys, choices))
        finally:
            self.rounding = False

    def exported_lists(self) -> dict[str, Any]:
        """Return the same lists of an export of what follows the network, in ONNX Runtime."""
        deployment, options = self.deployment, self.options
        family, model = deployment.family, deployment.model
        feeds = family.feeds([self.image], True)
        exported, given, metadata = self._run(*family.trial(model, options), feeds)
        (results,) = family.results(model, metadata, given | exported, feeds, [self.image], True)
        return {'': results} | family.inner_lists(exported)

    def first_list(self) -> dict[str, Any]:
        """Return upstream's list that the results are made from, by its name."""
        family = self.deployment.family
        with self.computed_once():
            (rows,) = family.first_list(self.deployment.model, [self.image])
        return {family.first: rows}

    def exported_first_list(self) -> dict[str, Any]:
        """Return the same list of an export of what makes it, in ONNX Runtime."""
        family, feeds = self.deployment.family, self.deployment.family.feeds([self.image], True)
        exported, *_ = self._run(*family.first_trial(self.deployment.model, self.options), feeds)
        return family.inner_lists(exported)

    def _run(
        self, stages: Sequence[Stage], outputs: tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Metadata]:
        """Export stages and run them; return what they give, all that there is before them, and metadata."""
        deployment, options = self.deployment, self.options
        made = {name for stage in stages for name in stage.outputs}
        taken = dict.fromkeys(name for stage in stages for name in stage.inputs if name not in made)
        if not stages:
            taken = dict.fromkeys(tensor.name for tensor in outputs)
        available = self._available(feeds, taken)
        given = {name: available[name] for name in taken}
        inputs = tuple(TensorSpec(name, str(one.dtype), one.shape) for name, one in given.items())
        spec = GraphSpec(f'{deployment.family.name}/{options.form}', inputs, outputs)
        graph = Graph(options.form, None, spec, make=lambda: stages)
        metadata = files.make_metadata(deployment, options, graph)
        if not stages:  # the graph ends with the network: what follows is the runtime's
            return {}, available, metadata
        device = next(deployment.model.parameters()).device
        example = {name: torch.from_numpy(one).to(device) for name, one in given.items()}
        runner = Runner(files.export_graph(graph, options, (), example), optimization='basic')
        return runner.run(given), available, metadata

    def _available(self, feeds: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return what the network gives of a picture, and the inputs of the file.

        Where the code of the network is the reference's own, it is the file's network that is looked at.
        """
        family, model = self.deployment.family, self.deployment.model
        contract = family.spec(model, self.options)
        inputs = contract.with_defaults({name: feeds[name] for name in contract.input_names if name in feeds})
        if self.file is None or not family.shares_network:
            with self.computed_once():
                return inputs | family.network_outputs(model, self.options, feeds)
        sizes = self.file.graph.input[0].type.tensor_type.shape.dim
        batch = sizes[0].dim_value or 1
        runner = Runner(self.file, [name for name in names if name not in inputs], optimization='basic')
        found = runner.run({name: np.repeat(one, batch, 0) for name, one in inputs.items()})
        return inputs | {name: one[:1] for name, one in found.items()}


class Trial(abc.ABC):
    """One case, as a proof runs it.

    Attributes:
        name: of the case.
        area: limit of areas, as a share of the area of a segment; 0 leaves the one of `values`.
        covered: on which side of a real mask the largest share is that better masks may cover: True if the
            mask is just laid, False if it is just left out; None leaves the share of `values`.
        trials: what it has in common with others.
    """

    name: ClassVar[str]
    area: ClassVar[float] = 0.0
    covered: ClassVar[bool | None] = None

    def __init__(self, trials: Trials) -> None:
        self.trials = trials

    @abc.abstractmethod
    def values(self) -> Values:
        """Return the changed limits, each so that it decides of some rows."""

    def expected(self) -> dict[str, Any]:
        """Return upstream's lists, by name."""
        return self.trials.lists()

    def found(self) -> dict[str, Any]:
        """Return the same lists of an export."""
        return self.trials.exported_lists()

    def boxes(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which heads give other boxes; see `ImageFamily.exaggerated`."""
        return contextlib.nullcontext()

    def case(self) -> Case:
        """Choose the limits, export what follows the network with them, and compare every list."""
        shape = 'x'.join(map(str, (1, *self.trials.image.tensor.shape)))
        with self.boxes():
            values = self.with_areas(self.with_covered_share(self.values()), self.area)
            final = {(id(limit.config), limit.key): (limit, value) for limit, value in values}
            changes = [(limit, value) for limit, value in final.values() if value != limit.value]
            named = ', '.join(f'{limit.name} {value:.4g}' for limit, value in changes)
            with changed(values):
                rows = self._compared()
        return Case(f'{self.name}: {named}', shape, False, detections=rows)

    def with_areas(self, values: Values, share: float) -> Values:
        """Return values in which limits of areas are this share of the area of a segment."""
        for limit in self.of_kind(Kind.AREA) if share else ():
            with changed([*values, (limit, 1)]):
                segments = self.trials.lists()['']
            areas = np.sort(segments.masks[segments.ids < OFFSET].sum((1, 2)))
            if len(areas):
                values = [*values, (limit, int(share * areas[len(areas) // 2]))]
        return values

    def with_covered_share(self, values: Values) -> Values:
        """Return values in which the share that may be covered is close to that of a mask of the picture.

        It is found by bisection: with the smallest share the map has the fewest segments, and with a larger
        one at least as many. Where no share adds a segment, the values stay as they are.
        """
        for limit in self.of_kind(Kind.COVERED) if self.covered is not None else ():
            low, high = 1 - COVERED_FROM, COVERED_FROM
            fewest = self._segments([*values, (limit, low)])
            if self._segments([*values, (limit, high)]) == fewest:
                continue
            while high > low * COVERED_STEP:
                middle = math.sqrt(low * high)
                if self._segments([*values, (limit, middle)]) == fewest:
                    low = middle
                else:
                    high = middle
            values = [*values, (limit, high if self.covered else low)]
        return values

    def _segments(self, values: Values) -> int:
        """Return how many segments upstream's map of the picture has with changed limits."""
        with changed(values):
            return len(self.trials.lists()[''].ids)

    def of_kind(self, *kinds: Kind) -> list[Limit]:
        """Return the limits of some kinds."""
        return [limit for limit in self.trials.limits if limit.kind in kinds]

    def scores_with(self, values: Values, name: str = '') -> np.ndarray:
        """Return the scores of upstream's list with changed limits, in descending order."""
        trials = self.trials
        with changed(values), trials.computed_once():
            scores = trials.deployment.family.scores_of(trials.deployment.model, [trials.image], name)
        return -np.sort(-scores.astype(np.float64))

    def _compared(self) -> tuple[DetectionRow, ...]:
        """Return a row for every list; the model has the changed limits."""
        trials, family = self.trials, self.trials.deployment.family
        expected = self.expected()
        titles = {name: f'{trials.title}: {name}' if name else trials.title for name in expected}
        bars = dict(score_bar=SCORE_BAR) if family.task in BOXED else {}
        try:
            found = self.found()
        except FAILURES as error:
            return tuple(nothing_found(titles[name], wanted, error) for name, wanted in expected.items())
        return tuple(
            task_module('bbox2d' if name else family.task).match_detections(
                titles[name],
                wanted,
                found[name],
                score_thr=0.0,
                near_ties=functools.partial(trials.near_ties, name),
                **bars,
            )
            for name, wanted in expected.items()
            if name in found  # a graph of regions is given its proposals
        )


class LimitsLowered(Trial):
    """Few candidates of each level, none of which is suppressed, and lists that are cut off."""

    name = 'limits lowered'
    area = 0.98  # the segment is left: a pixel may round to either side
    covered = True

    def values(self) -> Values:
        values = [(limit, lowered(limit)) for limit in self.trials.limits if limit.kind not in COUNTED]
        values += [(limit, limit.value * self._share()) for limit in self.of_kind(Kind.SCORE)]
        *inner, last = self.of_kind(Kind.ROWS) or [None]
        for limit in inner:
            scores = self.scores_with([*values, (limit, limit.available)], limit.list)
            values.append((limit, cut(scores, limit.least) or lowered(limit)))
        if last is None:
            return values
        scores = self.scores_with([*values, (last, self._without_end(last))], last.list)
        return [*values, (last, cut(scores, last.least) or lowered(last))]

    def _without_end(self, limit: Limit) -> int:
        """Return a limit that leaves all results of few candidates, where they can be compared."""
        if not self.of_kind(Kind.CANDIDATES):
            return limit.value
        masks = self.trials.deployment.family.task != 'bbox2d'
        return min(max(limit.value, self.trials.most_masks), limit.available) if masks else limit.available

    def _share(self) -> float:
        """Return what thresholds of scores are multiplied by: 0 where few candidates are chosen anyway."""
        if self.trials.capped:
            return 1.0
        return self.trials.deployment.family.lowest_share if self.of_kind(Kind.CANDIDATES) else SHARES[1]


class LimitsRaised(Trial):
    """More candidates and results than the limits of the model let through, and boxes beyond all borders."""

    name = 'limits raised'
    area = 1.02  # the segment is gone
    covered = False

    def boxes(self) -> contextlib.AbstractContextManager[None]:
        return self.trials.deployment.family.exaggerated(self.trials.deployment.model)

    def values(self) -> Values:
        """See `Trial.values`: the limit of the results is beyond all that pass, so that thresholds decide."""
        limits = [limit for limit in self.trials.limits if not self._is_first(limit)]
        values = [(limit, raised(limit)) for limit in limits if limit.kind not in COUNTED]
        (last,) = [limit for limit in limits if limit.kind is Kind.ROWS] or [None]
        if last is None:
            return values + self._thresholds(values, '', 0, MOST)
        most = min(self._most(last), last.available)
        values += self._thresholds([*values, (last, most)], last.list, last.value, most)
        return [*values, (last, self._limit(last, [*values, (last, most)], most))]

    def _is_first(self, limit: Limit) -> bool:
        """Return whether a limit is of the list that the results are made from."""
        return bool(limit.list) and limit.list == self.trials.deployment.family.first

    def _limit(self, limit: Limit, values: Values, most: int) -> int:
        """Return a raised limit of rows: the most, where fewer pass, or one that cuts some off."""
        scores = self.scores_with(values, limit.list)
        if len(scores) < most:
            return most
        return cut(scores, limit.value + 1) or min(raised(limit), limit.available)

    def _most(self, limit: Limit) -> int:
        """Return how many results are compared at most."""
        masks = self.trials.deployment.family.task != 'bbox2d'
        return max(self.trials.most_masks if masks else MOST, raised(limit))

    def _thresholds(self, values: Values, name: str, least: int, most: int) -> Values:
        """Return thresholds of scores that let more than `least` rows of a list in, and fewer than `most`.

        Where there are none that do, they let in more.
        """
        limits, share = self.of_kind(Kind.SCORE), SHARES[0]
        if not limits:
            return []

        def lower(share: float) -> Values:
            return [(limit, limit.value * share) for limit in limits]

        def count(share: float) -> int:
            return len(self.scores_with([*values, *lower(share)], name))

        for share in SHARES:
            if self._is_enough([*values, *lower(share)], name, least):
                break
        found = count(share)
        while found >= most and share < 1 and (fewer := count(min(share * STEP, 1.0))) > least:
            share, found = min(share * STEP, 1.0), fewer
        return lower(share)

    def _is_enough(self, values: Values, name: str, least: int) -> bool:
        """Return whether a list has enough rows, and others with the model's own numbers of candidates."""
        scores = self.scores_with(values, name)
        if len(scores) < max(self.trials.deployment.family.trial_rows, least + 1):
            return False
        if self.trials.deployment.family.task != 'bbox2d':  # masks are too few to show it
            return True
        before = [(limit, limit.value) for limit in self.of_kind(Kind.CANDIDATES)]
        return not before or not np.array_equal(self.scores_with([*values, *before], name), scores)


class FirstLimitsRaised(LimitsRaised):
    """More rows of the list that the results are made from, which alone is looked at."""

    area = 0.0
    covered = None

    @property
    def name(self) -> str:
        return f'limits of {self.trials.deployment.family.first} raised'

    def values(self) -> Values:
        limits = [limit for limit in self.trials.limits if self._is_first(limit)]
        values = [(limit, raised(limit)) for limit in limits if limit.kind is not Kind.ROWS]
        for limit in (limit for limit in limits if limit.kind is Kind.ROWS):
            most = max(MOST, raised(limit))
            values.append((limit, self._limit(limit, [*values, (limit, most)], most)))
        return values

    def expected(self) -> dict[str, Any]:
        return self.trials.first_list()

    def found(self) -> dict[str, Any]:
        return self.trials.exported_first_list()


class ThresholdsRaised(Trial):
    """A threshold between two scores of a full list, so that it decides of the list, and not the limit."""

    name = 'thresholds raised'

    def values(self) -> Values:
        """Return a threshold between two scores that are close: with almost any other one, results differ.

        It may be compared with a score before that is multiplied by another one, which is higher than that of
        the result: then more pass, and a higher threshold is taken.
        """
        *_, last = self.of_kind(Kind.ROWS)
        threshold, *_ = self.of_kind(Kind.SCORE)
        scores = self.scores_with([], last.list)
        for share in PASSING:
            values = [(threshold, _between(scores, int(share * len(scores))))]
            if len(self.scores_with(values, last.list)) < last.value:
                break
        return values


class OnePasses(Trial):
    """A threshold that the best row passes alone: a list of one is neither empty nor sorted."""

    name = 'one passes'

    def values(self) -> Values:
        """Return a threshold that one row passes, by bisection; a limit of one if there is no threshold."""
        thresholds = self.of_kind(Kind.SCORE)
        if not thresholds:
            return [(limit, limit.least) for limit in self.of_kind(Kind.ROWS)[-1:]]
        threshold, low, high = thresholds[0], thresholds[0].value, 1.0
        for _ in range(BISECTIONS):
            values = [(threshold, (low + high) / 2)]
            count = len(self.scores_with(values, threshold.list))
            if count == 1:
                break
            low, high = (values[0][1], high) if count else (low, values[0][1])
        return values


class NothingPasses(Trial):
    """Thresholds that no row passes, of a model that finds something in every plain picture."""

    name = 'nothing passes'

    def values(self) -> Values:
        return [(limit, limit.nothing) for limit in self.trials.limits if limit.nothing is not None]


COUNTED = Kind.ROWS, Kind.SCORE
"""Limits whose values follow from how many rows there are."""


def _between(scores: np.ndarray, place: int) -> float:
    """Return a value between two of descending scores that are close; one of them is near a place."""
    middle = scores[place // 2 : place + 2]
    gaps = middle[:-1] - middle[1:]
    wide = gaps[gaps >= LEAST_GAP]
    index = int(np.argmax(gaps == (wide.min() if len(wide) else gaps.max())))
    return float(middle[index : index + 2].mean())


def cut(scores: np.ndarray, least: int) -> int:
    """Return a limit that cuts off the last of descending scores, between two that rounding does not mix.

    It leaves at least so many; 0 where there are not more.
    """
    most = len(scores) - 1
    if most < least:
        return 0
    first = max(least, int(CUT_FROM * most))
    return first + int(np.argmax(scores[first - 1 : most] - scores[first : most + 1]))


def _content(value: Any) -> Iterator[Any]:
    """Yield what tells arguments apart: tensors and arrays by their bytes, the rest by its text."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        yield array.shape, hashlib.blake2b(array.tobytes()).digest()
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _content(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _content(one)
    else:
        yield repr(value)


def _copied(value: Any) -> Any:
    """Return a copy of nested outputs, which callers may change."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value
