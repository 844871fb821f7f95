"""`--parts list`: what could be a part of a model, what exports, and a cut with the largest share of time."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.exporting.export import default_opset
from mmdeploy_ext.parts.export import DEFAULTS, RecordedPart, names_for, with_place
from mmdeploy_ext.parts.folder import result_json
from mmdeploy_ext.parts.graph import modules_among
from mmdeploy_ext.parts.part import Part, Step, intercepted
from mmdeploy_ext.parts.record import PartCall, record, same_values
from mmdeploy_ext.parts.refusals import checked_form
from mmdeploy_ext.parts.samples import run_test_path
from mmdeploy_ext.util.errors import Mm2OnnxError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    import torch
    from rich.console import Console

    from mmdeploy_ext.parts.model import ModelFactory

DEEPEST = 3
"""Depth of the modules that are tried."""
LONGEST = 150
"""Letters of a reason in the table."""


@dataclasses.dataclass
class Candidate:
    """A module that could be a part.

    Attributes:
        path: path in the model.
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


def shares_of(factory: ModelFactory, samples: Sequence[Any]) -> dict[str, float]:
    """Return path -> share of the time of the test path, of the modules that it calls, in their order."""
    model = factory.make()
    seconds: dict[str, float] = {}

    def timed(path: str, original: Any, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        seconds.setdefault(path, 0.0)
        result = original(*args, **kwargs)
        seconds[path] += time.perf_counter() - start
        return result

    paths = [path for path, _ in model.named_modules() if path and path.count('.') < DEEPEST]
    handlers = {Step(path): functools.partial(timed, path) for path in paths}
    with intercepted(model, handlers):
        for sample in samples:
            start = time.perf_counter()
            run_test_path(model, sample)
            seconds[''] = seconds.get('', 0.0) + time.perf_counter() - start
    whole = seconds.pop('')
    return {path: value / whole for path, value in seconds.items()}


def candidates_of(
    factory: ModelFactory, samples: Sequence[Any], options: Mapping[str, Any]
) -> list[Candidate]:
    """Return the modules that the test path calls; inside of those that export nothing is tried."""
    shares = shares_of(factory, samples)
    prepared, fresh, found = factory.make_prepared(), factory.make(), []
    chosen = {**DEFAULTS, **options}
    chosen['opset'] = chosen['opset'] or default_opset(prepared, chosen['exporter'])
    open_paths = [path for path in shares if '.' not in path]
    while open_paths:
        model = factory.make()
        parts = [Part((Step(path),)) for path in open_paths]
        recording = record(model, parts, samples, run_test_path)
        failed = []
        for part, calls in recording.calls.items():
            path = part.text
            weights = sum(parameter.numel() for parameter in model.get_submodule(path).parameters())
            candidate = Candidate(path, shares[path], weights, calls)
            candidate.reason = reason_against(part, calls, (model, fresh, prepared), factory.make, chosen)
            found.append(candidate)
            if candidate.reason:
                failed.append(path)
        open_paths = [
            path for path in shares if path.rpartition('.')[0] in failed or _is_listed(path, failed, shares)
        ]
    return found


def _is_listed(path: str, failed: Sequence[str], called: Container[str]) -> bool:
    """Whether a module is an entry of a list of a module that failed: `layers.0`."""
    owner, _, index = path.rpartition('.')
    return index.isdigit() and owner not in called and owner.rpartition('.')[0] in failed


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
        recorded = RecordedPart(checked_form(fresh, part, calls, paths), calls, paths)
        try:
            recorded.export(prepared, options, names_for(recorded.form, {}), make)
        except Mm2OnnxError as error:
            return one_line(with_place(error, recorded, prepared))
    except Mm2OnnxError as error:
        return one_line(error).removeprefix(f'--parts {part.text}: ')
    return ''


def proposal_of(candidates: Sequence[Candidate]) -> list[str]:
    """Return the cut with the largest share: all that exports, joined where tensors flow on unchanged."""
    words: list[str] = []
    last: Candidate | None = None
    for candidate in candidates:
        if candidate.reason or not candidate.weights:
            continue
        if last is not None and '.' not in candidate.path and _flows(last, candidate):
            words[-1] += f'+{candidate.path}'
        else:
            words.append(candidate.path)
        last = candidate
    return words


def _flows(first: Candidate, second: Candidate) -> bool:
    if len(first.calls) != len(second.calls):
        return False
    results = first.calls[0].steps[0].result.tensors.values()
    tensors = second.calls[0].steps[0].arguments.tensors.values()
    return all(any(same_values(result, tensor) for result in results) for tensor in tensors)


def print_parts(
    factory: ModelFactory, samples: Sequence[Any], options: Mapping[str, Any], console: Console
) -> None:
    """Print the modules of a model with their tensors and shares of the time, and propose a cut."""
    from rich.table import Table

    candidates = candidates_of(factory, samples, options)
    table = Table(title=f'{factory.config}: parts')
    for title in ('part', 'tensors', 'time', 'weights', 'exports'):
        table.add_column(title, overflow='fold')
    for candidate in candidates:
        reason = candidate.reason[:LONGEST]
        share, weights = f'{100 * candidate.share:.0f} %', f'{candidate.weights:,}'
        table.add_row(
            candidate.path,
            candidate.tensors_text,
            share,
            weights,
            f'does not: {reason}' if reason else 'exports',
        )
    console.print(table)
    words = proposal_of(candidates)
    share = sum(candidate.share for candidate in candidates if not candidate.reason)
    if words:
        parts = ' '.join(words)
        console.print(f'{100 * share:.0f} % of the time: --parts {parts}', highlight=False, soft_wrap=True)
