"""A small part of a graph that still shows a fault: no node of it can be left out alone."""

import dataclasses
import itertools
from collections.abc import Callable

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.reduce.case import Candidate, Case
from mmdeploy_ext.graphs.reduce.checks import Check, Stopped

MAX_CHECKS = 400
"""Candidates that are checked by default."""
Part = tuple[int, ...]
"""Positions of the nodes of a part, ascending."""


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A part of a graph that shows the fault, and would not without one of its nodes, unless `stopped`.

    Attributes:
        nodes_before: nodes of the prepared graph.
        checks: number of checked candidates.
        stopped: why the search ended early, or ''.
    """

    candidate: Candidate
    nodes_before: int
    checks: int
    stopped: str


class _Search:
    def __init__(
        self,
        case: Case,
        check: Check,
        whole_model: Candidate,
        limit: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.case, self.check, self.best, self.limit, self.progress = (
            case,
            check,
            whole_model,
            limit,
            progress,
        )
        self.checks = 1  # of the whole graph
        self.results: dict[tuple[Part, tuple[str, ...] | None], bool] = {(case.everything, None): True}

    def shows(self, part: Part, outputs: tuple[str, ...] | None = None) -> bool:
        key = (part, outputs)
        if key not in self.results:
            candidate = self.case.candidate(part, outputs) if part else None
            self.results[key] = candidate is not None and self.run_check(candidate)
        return self.results[key]

    def run_check(self, candidate: Candidate) -> bool:
        if self.checks >= self.limit:
            raise Stopped(f'the limit of {self.limit} checks was reached')
        self.checks += 1
        is_shown = self.check.shows(candidate)
        if is_shown:
            self.best = candidate
        self.progress(self.checks, len(self.best.positions))
        return is_shown

    def smallest(self, part: Part) -> Part:
        part = self.bisect(part, lambda part, length: part[:length])
        part = self.bisect(part, lambda part, length: part[-length:])
        needed = set(self.case.index.ancestors(self.case.index.writes(part[-1])))
        smaller = tuple(position for position in part if position in needed)
        return self.leave_out_chunks(smaller if self.shows(smaller) else part)

    def bisect(self, part: Part, cut: Callable[[Part, int], Part]) -> Part:
        low, high = 0, len(part)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.shows(cut(part, middle)) else (middle, high)
        return cut(part, high)

    def leave_out_chunks(self, part: Part) -> Part:
        chunks = 2
        while len(part) > 1:
            bounds = [len(part) * step // chunks for step in range(chunks + 1)]
            parts = (part[:low] + part[high:] for low, high in itertools.pairwise(bounds))
            smaller = next(filter(self.shows, parts), None)
            if smaller is not None:
                part, chunks = smaller, max(chunks - 1, 2)
            elif chunks < len(part):
                chunks = min(2 * chunks, len(part))
            else:
                break
        return part

    def try_single_outputs(self, part: Part) -> None:
        names = self.case.outputs_of(part)
        if len(names) > 1:
            any(self.shows(part, (name,)) for name in names)

    def narrow(self, part: Part) -> None:
        if len(part) > 1 and self.check.narrow():
            self.results = {}
            if self.shows(part):
                self.try_single_outputs(self.smallest(part))
            else:
                self.check.widen()


def reduce(
    case: Case,
    check: Check,
    *,
    most_checks: int = MAX_CHECKS,
    progress: Callable[[int, int], None] | None = None,
) -> Reduction:
    """Find a part of a graph that shows the fault, and of which no single node can be left out.

    `case.rounding` becomes the check's. After `most_checks` the smallest part so far is the result.
    `progress` gets the number of checks and of nodes left.
    """
    case.rounding = check.rounding
    whole_model = case.candidate(case.everything)
    if whole_model is None:
        raise UsageError('the graph has no output that is a tensor, or an input without a value')
    if not check.check_whole(whole_model):
        raise UsageError(f'--check: {check.why_not()}; there is nothing to reduce')
    search = _Search(case, check, whole_model, most_checks, progress or (lambda checks, nodes: None))
    stopped = ''
    try:
        part = search.smallest(case.everything)
        search.try_single_outputs(part)
        search.narrow(part)
        if not check.shows(search.best):
            raise UsageError(
                '--check: gives different answers for the same graph; make it deterministic (seeds, threads)'
            )
    except Stopped as reason:
        stopped = str(reason)
    return Reduction(search.best, len(case.everything), search.checks, stopped)
