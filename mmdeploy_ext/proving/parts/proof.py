"""The proof of a folder of parts: graphs, tensors of each part, results of the whole model."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.arrays import load_arrays, to_array
from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import ConfigError, Mm2OnnxError, UsageError, one_line, shape_text
from mmdeploy_ext.base.source_code import changed_files, model_classes
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.file_checks import check_not_random, check_valid, compare_with_fresh_export
from mmdeploy_ext.proving.not_shown import add_code
from mmdeploy_ext.proving.parts.export import RecordedPart, record_parts
from mmdeploy_ext.proving.parts.folder import RESULTS
from mmdeploy_ext.proving.parts.record import record, seeded
from mmdeploy_ext.proving.parts.results import (
    compare_filled,
    flat_arrays,
    history_keys,
    match_results,
    with_kept,
)
from mmdeploy_ext.proving.parts.samples import lit_samples, run_test_path
from mmdeploy_ext.proving.parts.swap import PartSession, open_sessions, swapped
from mmdeploy_ext.proving.proof import ROUNDED_FP16
from mmdeploy_ext.spec.comparison import DRAWS, MOST_ROUNDING, ROUNDINGS, failed_row, same_bits
from mmdeploy_ext.spec.matching import accept_rest
from mmdeploy_ext.spec.results import Case, Check, accept_rate, bars_of, tensor_text
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from mmdeploy_ext.spec.verdict import UNSEEN, Verdict, check_finding, graph_finding
from mmdeploy_ext.upstream.compat import replaced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.proving.parts.export import ModelFactory
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.record import Recording
    from mmdeploy_ext.spec.results import Bars, TensorRow


# Rounding of a whole test path: results in float64, and integers chosen within rounding.


CHOICE = 'choice '
"""Prefix of a choice's number, unlike names of results."""


class _Choices(TorchFunctionMode):
    """Keeps the values of `argmax` and `max` along an axis, (n, values), and the indices (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[np.ndarray, np.ndarray]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        axis = kwargs.get('dim', args[1] if len(args) > 1 else None)
        if getattr(func, '__name__', '') in ('argmax', 'max') and isinstance(axis, int):
            values = to_array(args[0]) if args else to_array(kwargs['input'])
            indices = to_array(results if isinstance(results, torch.Tensor) else results.indices)
            if values.dtype.kind == 'f':
                values = np.moveaxis(values, axis, -1)
                self.found.append((values.reshape(-1, values.shape[-1]), indices.ravel()))
        return results


@dataclasses.dataclass
class WholeRounding:
    """How far two correct results of the last sample may differ.

    Attributes:
        title: of the results.
        reference: PyTorch's results of the last sample.
        factory: makes the fresh model.
        samples: keyword arguments of the test path up to that sample.
        ties: lines on integers that rounding decides.
    """

    title: str
    reference: Any
    factory: ModelFactory
    samples: Sequence[Any]
    ties: list[str] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _distances(self) -> Any:
        model = self.factory.make()
        run = functools.partial(self._run, model)
        named = {f'{CHOICE}{index}': values for index, (values, _) in enumerate(self._last[1])}
        return rounding_of(model, {**self._arrays(self.reference), **named}, run)

    @functools.cached_property
    def _last(self) -> tuple[Sequence[Any], list[tuple[np.ndarray, np.ndarray]]]:
        """The samples that affect the results (only the last if it suffices), and the choices."""
        expected = flat_arrays(self.reference)
        result, choices = self._results(self.factory.make(), self.samples[-1:])
        if same_bits(flat_arrays(result), expected):
            return self.samples[-1:], choices
        return self.samples, self._results(self.factory.make(), self.samples)[1]

    def _results(
        self, model: torch.nn.Module, samples: Sequence[Any]
    ) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
        for sample in samples:
            with torch.no_grad(), _Choices() as choices:
                result = run_test_path(model, sample)
        return result, choices.found

    def _run(self, model: torch.nn.Module) -> dict[str, np.ndarray]:
        result, choices = self._results(
            copy.deepcopy(model), self._last[0]
        )  # a run changes the model's memory
        named = {f'{CHOICE}{index}': values for index, (values, _) in enumerate(choices)}
        return {**self._arrays(result), **named}

    def _arrays(self, result: Any) -> dict[str, np.ndarray]:
        return match_results(self.title, self.reference, result).arrays

    def distances(self, draws: int) -> Mapping[str, np.ndarray]:
        """See `spec.comparison.Rounding`."""
        return self._distances(draws)

    def judge(self, row: TensorRow, reference: np.ndarray, candidate: np.ndarray) -> TensorRow:
        """Pass a row of integers if every difference is a choice within rounding."""
        if row.passed or reference.dtype.kind not in 'iu' or reference.shape != candidate.shape:
            return row
        expected, got = reference.ravel().astype(np.int64), candidate.ravel().astype(np.int64)
        places = np.flatnonzero(expected != got)
        for index, (values, indices) in enumerate(self._last[1]):
            if not np.array_equal(indices, expected) or not 0 <= got.min() <= got.max() < values.shape[1]:
                continue
            gaps = values[places, expected[places]] - values[places, got[places]]
            most = MOST_ROUNDING * DEFAULT_RTOL * np.abs(values[places]).max(axis=1)
            if (gaps > most).any():
                continue
            for draws in range(DRAWS + 1):
                rounding = self.distances(draws).get(f'{CHOICE}{index}', np.zeros_like(values))
                if (gaps <= ROUNDINGS * 2 * rounding[places].max(axis=1)).all():
                    self.ties.append(f'{row.tensor}: {len(places)} of {expected.size} values')
                    return dataclasses.replace(row, passed=True, reason='')
        return row


FACTS = dict(config_sha256='model and test pipeline of the config', checkpoint_sha256='checkpoint')
"""Fact of the export -> its name in the verdict."""


def prove_folder(
    factory: ModelFactory,
    folder: CutFolder,
    samples: Sequence[Any],
    recorded: tuple[list[RecordedPart], Recording] | None = None,
) -> Verdict:
    """Prove exported parts: each graph, each part's tensors, and the whole model with sessions swapped in.

    Args:
        factory: config and checkpoint.
        folder: the exported folder.
        samples: keyword arguments of the test path, in order.
        recorded: result of `record_parts` on these samples, or None.
    """
    texts = [entry['part'] for entry in folder.entries]
    parts, recording = recorded or record_parts(factory, texts, samples, folder.is_seeded, folder.fixed)
    verdict = Verdict(_subject(factory, folder, samples))
    bars = bars_of(folder.options['precision'])
    sessions = open_sessions(folder, round_fp16=not bars.is_float32)
    _compare_graphs(verdict, factory, folder, parts)
    _check_facts(verdict, factory, folder)
    _compare_kept(verdict, folder, samples, recording)
    cases = _part_cases(factory, folder, parts, sessions)
    lit_parts, lit_results = _lit_cases(verdict, factory, folder, parts, samples[0], sessions)
    verdict.add_outputs([*cases, *lit_parts])
    if all(case.traced for case in cases):
        verdict.add_failures([UNSEEN])
    is_whole = all(case.passed for case in (*cases, *lit_parts))
    _compare_model(verdict, factory, samples, recording, sessions, bars, lit_results, is_whole)
    if not bars.is_float32:
        verdict.notes += [bars_text(bars), ROUNDED_FP16]
    verdict.notes += [
        f'{part}: valid for one camera rig only: {", ".join(keys)} of the samples is a constant of the graph'
        for part, keys in folder.fixed.items()
        if keys
    ]
    verdict.notes.append(f'the rest runs in PyTorch: {rest_text(factory, folder)}')
    verdict.subject['replaced'] = replaced.facts()
    return verdict


def _subject(factory: ModelFactory, folder: CutFolder, samples: Sequence[Any]) -> dict[str, Any]:
    return dict(
        file=str(folder.path),
        module=f'{factory.config} with these parts',
        parts=[entry['part'] for entry in folder.entries],
        precision=folder.options['precision'],
        samples=len(samples),
        **{key: value for key, value in factory.facts().items() if key != 'classes'},
        versions=folder.facts.get('versions'),
    )


def _compare_graphs(
    verdict: Verdict, factory: ModelFactory, folder: CutFolder, parts: Sequence[RecordedPart]
) -> None:
    model, warnings = factory.make_prepared(), []
    for part, entry in zip(parts, folder.entries, strict=True):
        written = load(str(folder.file(entry)))
        names = folder.names(entry)
        form = dataclasses.replace(part.form, dynamic=_axes_of(entry))
        fresh = dataclasses.replace(part, form=form)

        def export(fresh: RecordedPart = fresh, names: dict[str, str] = names) -> Any:
            return fresh.export(model, folder.options, names)

        with recorded_warnings(warnings):
            graph = compare_with_fresh_export(written, export, entry['part'])
        verdict.findings.append(graph_finding(graph))
        for check in (check_valid(written), check_not_random(written)):
            verdict.findings.append(check_finding(check))
    add_code(verdict, model_classes(factory.pristine), warnings)


def _axes_of(entry: dict[str, Any]) -> dict[str, dict[int, str]]:
    dynamic = {}
    for tensor in (*entry['inputs'], *entry['outputs']):
        axes = {axis: size for axis, size in enumerate(tensor['shape']) if isinstance(size, str)}
        if axes:
            dynamic[tensor['path']] = axes
    return dynamic


def _check_facts(verdict: Verdict, factory: ModelFactory, folder: CutFolder) -> None:
    facts = factory.facts()
    for key, title in FACTS.items():
        is_equal = folder.facts.get(key) == facts[key]
        detail = '' if is_equal else 'differs from the export'
        verdict.findings.append(check_finding(Check(f'{title} as exported', is_equal, detail)))
    if changed := changed_files(folder.facts.get('classes', ()), model_classes(factory.pristine)):
        verdict.notes.append(f'changed since the export: {", ".join(changed)}; results decide')


def _compare_kept(verdict: Verdict, folder: CutFolder, samples: Sequence[Any], recording: Recording) -> None:
    """Compare PyTorch's results with the export's, to detect changes around the parts."""
    kept = load_arrays(folder.path / RESULTS)
    compared, wrong = 0, []
    for key, result in zip(history_keys(samples), recording.results, strict=True):
        before = with_kept(result, key, kept)
        if before is None:
            continue
        compared += 1
        matched = match_results('results', before, result)
        wrong += [row.reason for row in (*matched.detections, *matched.tensors) if not row.passed]
    if not compared:
        verdict.notes.append(
            'other samples than at the export; their results at the export were not compared'
        )
        return
    title = f"PyTorch's results equal those at the export ({compared} samples)"
    detail = f'the code around the parts, or its inputs, changed: {wrong[0]}' if wrong else ''
    verdict.findings.append(check_finding(Check(title, not wrong, detail)))


def _part_cases(
    factory: ModelFactory,
    folder: CutFolder,
    parts: Sequence[RecordedPart],
    sessions: Sequence[PartSession],
    titles: Sequence[str] = (),
) -> list[Case]:
    """Return a case per call; `titles`: of samples new to the export."""
    cases, make, bars = [], functools.cache(factory.make), bars_of(folder.options['precision'])
    for part, session in zip(parts, sessions, strict=True):
        for index, call in enumerate(part.calls):
            inputs, reference = part.form.inputs_of(call), part.form.outputs_of(call)
            try:
                outputs = {name: to_array(tensor) for name, tensor in session.run(inputs).items()}
            except Mm2OnnxError as error:
                rows = [failed_row('all outputs', one_line(error)[:300])]
            else:
                rows = compare_filled(reference, outputs, rounding=part.rounding(make, call), bars=bars)
            shapes = ', '.join(shape_text(tensor.shape) for tensor in list(inputs.values())[:3])
            title = titles[call.sample] if titles else call.title
            traced = index == 0 and not titles
            sample = titles[call.sample] if titles else f'sample {call.sample}'
            name = f'{part.form.part.text}, {title}'
            cases.append(Case(name, shapes, traced, tuple(rows), sample=sample))
    return cases


def run_swapped(factory: ModelFactory, samples: Sequence[Any], sessions: Sequence[PartSession]) -> list[Any]:
    """Return the test path's results with sessions in place of parts, from a fresh state."""
    model, is_seeded = factory.make(), any(session.is_seeded for session in sessions)
    results = []
    with swapped(model, sessions):
        for sample in tracked(samples, len(samples), 'with sessions'):
            with seeded(is_seeded):
                results.append(run_test_path(model, sample))
    return results


def _compare_model(
    verdict: Verdict,
    factory: ModelFactory,
    samples: Sequence[Any],
    recording: Recording,
    sessions: Sequence[PartSession],
    bars: Bars,
    lit: Sequence[Case],
    is_whole: bool,
) -> None:
    """Compare the whole model; `is_whole`: each part gives PyTorch's tensors.

    The rest of the test path is PyTorch's, so that rounding explains a few results without a partner
    (`accept_rest`).
    """
    try:
        results = run_swapped(factory, samples, sessions)
    except (Mm2OnnxError, RuntimeError) as error:
        text = f'the test path with sessions in place of the parts raises: {one_line(error)[:300]}'
        verdict.add_failures([text], 'whole model')
        return
    cases, in_order, reason = [], [], ''
    is_seeded = any(session.is_seeded for session in sessions)
    for index, (reference, candidate) in enumerate(zip(recording.results, results, strict=True)):
        rounding = WholeRounding('results', reference, factory, () if is_seeded else samples[: index + 1])
        case, names = _whole_case(f'sample {index}', reference, candidate, bars, rounding)
        in_order += names
        verdict.notes += [f'beside a tie: sample {index}, {line}' for line in rounding.ties]
        cases.append(case)
    failed = [index for index, case in enumerate(cases) if not case.passed]
    cases = [dataclasses.replace(case, whole=is_whole) for case in (*cases, *lit)]
    if bars.is_float32:
        cases, alone = accept_rest(cases)
        verdict.notes += [f'without a partner end to end: {line}' for line in alone]
    else:
        cases, reason = accept_rate(cases, bars)
        verdict.add_failures(filter(None, [reason]), 'whole model')
    if not reason:
        failed = [index for index in failed if not cases[index].passed]
    first = min(failed, default=None)
    verdict.add_outputs(cases)
    if in_order:
        names = ', '.join(dict.fromkeys(in_order))
        verdict.notes.append(f'compared in order, since no task matches results of this form: {names}')
    if not any(case.tensors or case.detections for case in cases):
        verdict.add_failures(['its results have no array, so nothing was compared'], 'whole model')
    elif not any(row.reference for case in cases for row in case.detections) and not any(
        case.tensors for case in cases
    ):
        text = 'nothing was found in any sample; use samples with objects, or trained weights'
        verdict.add_failures([text], 'whole model')
    if first is not None:
        verdict.notes.append(
            f'first difference: {locate(factory, samples[: first + 1], recording, sessions, bars)}'
        )


def _lit_cases(
    verdict: Verdict,
    factory: ModelFactory,
    folder: CutFolder,
    parts: Sequence[RecordedPart],
    sample: Any,
    sessions: Sequence[PartSession],
) -> tuple[list[Case], list[Case]]:
    """Return the cases of the parts, and of the whole model, on a dark and a bright view of a sample."""
    lit = lit_samples(sample)
    if not lit:
        verdict.notes.append('no dark or bright image: the samples have no images of three channels')
        return [], []
    try:
        steps = [part.form.part for part in parts]
        recording = record(factory.make(), steps, list(lit.values()), run_test_path, folder.is_seeded)
        results = run_swapped(factory, list(lit.values()), sessions)
    except (ConfigError, UsageError) as error:  # a part is not called, or its file has other sizes
        verdict.notes.append(f'no dark or bright image: {one_line(error)[:300]}')
        return [], []
    except (Mm2OnnxError, RuntimeError) as error:
        verdict.add_failures([one_line(error)[:300]], ' and '.join(lit))
        return [], []
    called = [dataclasses.replace(part, calls=recording.calls[part.form.part]) for part in parts]
    whole, bars = [], bars_of(folder.options['precision'])
    for index, title in enumerate(lit):
        reference, shown = recording.results[index], list(lit.values())[: index + 1]
        rounding = WholeRounding('results', reference, factory, () if folder.is_seeded else shown)
        whole.append(_whole_case(title, reference, results[index], bars, rounding)[0])
        verdict.notes += [f'beside a tie: {title}, {line}' for line in rounding.ties]
    return _part_cases(factory, folder, called, sessions, list(lit)), whole


def _whole_case(
    sample: str, reference: Any, candidate: Any, bars: Bars, rounding: WholeRounding
) -> tuple[Case, list[str]]:
    """Return the case of one sample's results, and the names of arrays compared in order."""
    matched = match_results('results', reference, candidate, bars)
    if bars.is_float32 and rounding.samples and not all(row.passed for row in matched.tensors):
        matched = match_results('results', reference, candidate, bars, rounding)
    own = match_results('results', candidate, candidate, bars)  # the test path on the files' tensors
    rows = dict(detections=tuple(matched.detections), substituted=tuple(own.detections))
    case = Case(f'whole model, {sample}', '', False, tuple(matched.tensors), **rows, sample=sample)
    return case, matched.in_order


def locate(
    factory: ModelFactory,
    samples: Sequence[Any],
    recording: Recording,
    sessions: Sequence[PartSession],
    bars: Bars,
) -> str:
    """Return which single part changes the last sample's results."""
    index = len(samples) - 1
    for session in sessions:
        results = run_swapped(factory, samples, [session])
        if not match_results('', recording.results[index], results[-1], bars).passed:
            return f'sample {index}, with only {session.part.text} exported'
    return f'sample {index}, with all parts exported'


def bars_text(bars: Bars) -> str:
    """Return the bars of half precision in words."""
    return (
        f'judged with wider bars than float32: {tensor_text(bars.cosine)}, '
        f'{100 * bars.match_rate:g} % of the results matched within IoU {bars.iou} or {bars.distance_m} m '
        f'and score {bars.score}'
    )


def rest_text(factory: ModelFactory, folder: CutFolder) -> str:
    """Return the names of the model's modules outside of parts."""
    owners = [step.owner for part in folder.parts for step in part.steps]
    names = []
    for name, module in factory.pristine.named_children():
        inside = [owner for owner in owners if owner.startswith(f'{name}.')]
        if inside:
            names.append(f'{name} without {", ".join(inside)}')
        elif name not in owners and any(True for _ in module.parameters()):
            names.append(name)
    return ', '.join([*names, 'code between and after the modules'])
