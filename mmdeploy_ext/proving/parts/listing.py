"""`--parts list`: candidate parts of a model, which export, and the cut with the largest share of time."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ExportError, Mm2OnnxError, one_line
from mmdeploy_ext.proving.parts.export import DEFAULTS, RecordedPart, exported_part, with_place
from mmdeploy_ext.proving.parts.folder import result_json
from mmdeploy_ext.proving.parts.graph import checked_form, modules_among
from mmdeploy_ext.proving.parts.part import FORWARD, Part, Step, intercepted
from mmdeploy_ext.proving.parts.record import PartCall, record, same_values
from mmdeploy_ext.proving.parts.samples import run_test_path

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    import torch
    from rich.console import Console

    from mmdeploy_ext.proving.parts.export import ModelFactory

USUAL, DEEPEST = 3, 6
"""Depth of tried modules, and the depth while their share is below `NAMED`."""
NAMED = 0.95
"""Share of the time that is enough."""
LONGEST = 150
"""Length of a reason in the table."""


@dataclasses.dataclass(eq=False)
class Candidate:
    """A possible part: a module, or a method if its `forward` is not called.

    Attributes:
        path: as typed: 'backbone', 'roi_head.bbox_head.0', 'rpn_head.simple_test_rpn()'.
        share: share of the time of the test path, 0 to 1.
        weights: number of parameters.
        calls: recorded calls.
        reason: why it does not export; '' if it does.
    """

    path: str
    share: float
    weights: int
    calls: list[PartCall]
    reason: str = ''

    @property
    def tensors_text(self) -> str:
        arguments = self.calls[0].steps[0].arguments.tensors
        results = self.calls[0].steps[0].result.tensors
        times = f' (x{len(self.calls)})' if len(self.calls) > 1 else ''
        return f'{_shapes(arguments)} -> {_shapes(results)}{times}'


def _shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    texts = [f'{name} {"x".join(map(str, tensor.shape))}' for name, tensor in tensors.items()]
    return ', '.join([*texts[:2], f'{len(texts) - 2} more'] if len(texts) > 3 else texts)


def shares_of(factory: ModelFactory, samples: Sequence[Any]) -> dict[Step, float]:
    """Return step -> share of the time of the test path, in the order of the calls.

    Steps are called modules; for others, their methods called by other modules.
    """
    model = factory.make()
    seconds: dict[Step, float] = {}
    running: list[str] = []

    def timed(step: Step, original: Any, args: Any, kwargs: Any) -> Any:
        if step.method != FORWARD and step.owner in running:  # by its own method
            return original(*args, **kwargs)
        start = time.perf_counter()
        seconds.setdefault(step, 0.0)
        running.append(step.owner)
        try:
            result = original(*args, **kwargs)
        finally:
            running.pop()
        seconds[step] += time.perf_counter() - start
        return result

    steps = [
        Step(path, name)
        for path, module in model.named_modules()
        if path and path.count('.') < DEEPEST
        for name in (FORWARD, *_methods(type(module)))
    ]
    whole = 0.0
    with intercepted(model, {step: functools.partial(timed, step) for step in steps}):
        for sample in samples:
            start = time.perf_counter()
            run_test_path(model, sample)
            whole += time.perf_counter() - start
    called = {step.owner for step in seconds if step.method == FORWARD}
    return {
        step: value / whole
        for step, value in seconds.items()
        if step.method == FORWARD or step.owner not in called
    }


def _methods(kind: type) -> list[str]:
    """Return the names of methods that PyTorch and mmcv do not define for all modules."""
    own = [base for base in kind.__mro__ if base.__module__.partition('.')[0] not in ('torch', 'builtins')]
    names = (name for base in own for name, value in vars(base).items() if inspect.isfunction(value))
    return [name for name in dict.fromkeys(names) if name != FORWARD and not name.startswith('__')]


def candidates_of(
    factory: ModelFactory, samples: Sequence[Any], options: Mapping[str, Any]
) -> list[Candidate]:
    """Return the test path's calls; nothing is tried inside of exportable ones."""
    shares = shares_of(factory, samples)
    prepared, fresh, found = factory.make_prepared(), factory.make(), []
    chosen = {**DEFAULTS, **options}
    owners = {step.owner for step in shares}
    opened = ['']
    while opened:
        named = sum(candidate.share for candidate in found if not candidate.reason)
        deepest = USUAL if named >= NAMED else DEEPEST
        steps = [
            step
            for step in shares
            if _owner_around(step.owner, owners) in opened and step.owner.count('.') < deepest
        ]
        if not steps:
            break
        model = factory.make()
        recording = record(model, [Part((step,)) for step in steps], samples, run_test_path, chosen['seeded'])
        opened = []
        for part, calls in recording.calls.items():
            (step,) = part.steps
            weights = sum(parameter.numel() for parameter in step.owner_in(model).parameters())
            candidate = Candidate(part.text, shares[step], weights, calls)
            candidate.reason = reason_against(part, calls, (model, fresh, prepared), factory.make, chosen)
            found.append(candidate)
            if candidate.reason:
                opened.append(step.owner)
    return found


def _owner_around(path: str, owners: Container[str]) -> str:
    """Return the nearest enclosing module that is called, itself or by a method; '' is the model."""
    while path := path.rpartition('.')[0]:
        if path in owners:
            return path
    return ''


def reason_against(
    part: Part,
    calls: list[PartCall],
    models: tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module],
    make: Callable[[], torch.nn.Module],
    options: Mapping[str, Any],
) -> str:
    """Return why a part cannot be exported; '' if it can."""
    model, fresh, prepared = models
    try:
        result_json(part, calls[0].steps[-1].result)
        paths = modules_among(calls[0], model)
        recorded = RecordedPart(checked_form(fresh, part, calls, paths, options['seeded']), calls, paths)
        try:
            exported_part(recorded, prepared, options, {}, make)
        except ExportError as error:
            return one_line(with_place(error, recorded, prepared))
    except Mm2OnnxError as error:
        return one_line(error).removeprefix(f'--parts {part.text}: ')
    return ''


def proposal_of(candidates: Sequence[Candidate]) -> list[str]:
    """Return the cut with the largest share, joined at unchanged tensors.

    Omits the smallest separate parts while `NAMED` of the time stays.
    """
    exporting = [candidate for candidate in candidates if candidate.weights and not candidate.reason]
    whole, named = sum(candidate.share for candidate in exporting), 0.0
    chosen: list[Candidate] = []
    for candidate in sorted(exporting, key=lambda candidate: -candidate.share):
        if named >= NAMED * whole:
            break
        chosen.append(candidate)
        named += candidate.share
    words: list[str] = []
    last: Candidate | None = None
    for candidate in exporting:
        flows = last is not None and '.' not in candidate.path and _flows(last, candidate)
        if flows and not any(_takes(other, last) for other in candidates if other is not candidate):
            words[-1] += f'+{candidate.path}'
        elif candidate in chosen:
            words.append(candidate.path)
        else:
            continue
        last = candidate
    return words


def _flows(first: Candidate, second: Candidate) -> bool:
    if len(first.calls) != len(second.calls):
        return False
    results = first.calls[0].steps[0].result.tensors.values()
    tensors = second.calls[0].steps[0].arguments.tensors.values()
    return all(any(same_values(result, tensor) for result in results) for tensor in tensors)


def _takes(other: Candidate, first: Candidate) -> bool:
    """Whether another module outside gets one of its results."""
    if other is first or other.path.startswith(f'{first.path}.'):
        return False
    results = list(first.calls[0].steps[0].result.tensors.values())
    tensors = other.calls[0].steps[0].arguments.tensors.values()
    return any(same_values(result, tensor) for tensor in tensors for result in results)


def print_parts(
    factory: ModelFactory, samples: Sequence[Any], options: Mapping[str, Any], console: Console
) -> None:
    """Print modules and methods by time share, with their tensors, and propose a cut."""
    from rich.table import Table

    candidates = candidates_of(factory, samples, options)
    table = Table(title=f'{factory.config}: parts')
    for title in ('part', 'tensors', 'time', 'weights', 'exports'):
        table.add_column(title, overflow='fold')
    named = 0.0
    by_share = sorted(candidates, key=lambda candidate: -candidate.share)
    for index, candidate in enumerate(by_share):
        reason = candidate.reason[:LONGEST]
        share, weights = f'{100 * candidate.share:.0f} %', f'{candidate.weights:,}'
        exports = f'does not: {reason}' if reason else 'exports'
        table.add_row(candidate.path, candidate.tensors_text, share, weights, exports)
        named += 0 if reason else candidate.share
        if named >= NAMED and index + 1 < len(by_share):
            table.add_row(f'{len(by_share) - index - 1} more', '', '', '', '')
            break
    console.print(table)
    words = proposal_of(candidates)
    named_words = {word for text in words for word in text.split('+')}
    share = sum(candidate.share for candidate in candidates if candidate.path in named_words)
    if words:
        parts = ' '.join(words)
        console.print(f'{100 * share:.0f} % of the time: --parts {parts}', highlight=False, soft_wrap=True)
