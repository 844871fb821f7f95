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
from mmdeploy_ext.base.errors import UsageError, after_weights, one_line, shape_text
from mmdeploy_ext.base.source_code import changed_files, model_classes
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.exporting.substitution import configs_in
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.difference import Compared, Search, locate
from mmdeploy_ext.proving.explain import matched, rounding_of
from mmdeploy_ext.proving.file_checks import check_not_random, check_valid, compare_with_fresh_export
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.not_shown import add_code
from mmdeploy_ext.proving.parts.export import (
    ModelFactory,
    RecordedPart,
    export_folder,
    read_model,
    record_parts,
)
from mmdeploy_ext.proving.parts.folder import RESULTS, CutFolder
from mmdeploy_ext.proving.parts.graph import PartModule, run_part
from mmdeploy_ext.proving.parts.record import Recording, record, seeded
from mmdeploy_ext.proving.parts.results import (
    Paired,
    filled,
    flat_arrays,
    history_keys,
    paired,
    settings_of,
    with_kept,
)
from mmdeploy_ext.proving.parts.samples import lit_samples, run_test_path, samples_of
from mmdeploy_ext.proving.parts.swap import PartSession, open_sessions, swapped
from mmdeploy_ext.proving.proof import ROUNDED_FP16
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.tasks import match
from mmdeploy_ext.spec.comparison import DRAWS, MOST_ROUNDING, ROUNDINGS, same_bits
from mmdeploy_ext.spec.matching import accept_rest
from mmdeploy_ext.spec.results import Case, Check, accept_rate, bars_of, tensor_text
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from mmdeploy_ext.spec.verdict import UNSEEN, Verdict, check_finding, graph_finding
from mmdeploy_ext.upstream.compat import replaced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.proving.parts.record import PartCall
    from mmdeploy_ext.spec.comparison import Rounding
    from mmdeploy_ext.spec.results import Bars, DetectionRow

    Arrays = Mapping[str, np.ndarray]


Choice = tuple[np.ndarray, np.ndarray]
"""Values (n, choices) and the index of the largest (n,)."""


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


class Calls(Subject):
    """Recorded calls of parts, and the sessions of their files.

    Attributes:
        first_failed: the first entry of `given` whose outputs differ.
    """

    again = -1

    def __init__(
        self,
        parts: Sequence[RecordedPart],
        sessions: Sequence[PartSession],
        module: torch.nn.Module | None,
        bars: Bars,
        titles: Sequence[str] = (),
    ) -> None:
        """Keep both sides; `module` is fresh, `titles` are of samples new to the export."""
        pairs = zip(parts, sessions, strict=True)
        self.given = [(part, session, call) for part, session in pairs for call in part.calls]
        self.module, self.bars, self.titles = module, bars, titles
        self.first_failed: tuple[RecordedPart, PartSession, PartCall] | None = None

    def sample(self, entry: Any, index: int, mode: str) -> Sample:
        part, _, call = entry
        inputs = [*part.form.inputs_of(call).values()]
        shapes = ', '.join(shape_text(tensor.shape) for tensor in inputs[:3])
        title = self.titles[call.sample] if self.titles else call.title
        is_traced = not self.titles and call is part.calls[0]
        return Sample(f'{part.form.part.text}, {title}', entry, shapes, is_traced)

    def want(self, sample: Sample, state: Any) -> Step:
        part, _, call = sample.data
        return Step(part.form.outputs_of(call))

    def got(self, sample: Sample, state: Any) -> Step:
        part, session, call = sample.data
        outputs = session.run(part.form.inputs_of(call))
        return Step({name: to_array(tensor) for name, tensor in outputs.items()})

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        sides = zip((want, got), filled(want.tensors, got.tensors), strict=True)
        return *(dataclasses.replace(step, tensors=tensors) for step, tensors in sides), ()

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, np.ndarray]:
        part, _, call = sample.data
        return run_part(self.module, part.form, call, part.form.inputs_of(call), part.paths)

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        _, _, call = sample.data
        if not case.passed and self.first_failed is None:
            self.first_failed = sample.data
        title = self.titles[call.sample] if self.titles else f'sample {call.sample}'
        return dataclasses.replace(case, sample=title)


class Whole(Subject):
    """The user's test path on all samples, as recorded, and with sessions in place of the parts.

    Attributes:
        in_order: names of arrays that were compared in order.
        ties: lines on integers that rounding decides.
        refused: why a session takes no sample that is new to the export.
        needed: index -> samples that affect the results of one.
    """

    again, all_outputs = -1, 'results'

    def __init__(
        self,
        factory: ModelFactory,
        recorded: Sequence[tuple[Any, Any]],
        sessions: Sequence[PartSession],
        module: torch.nn.Module | None,
        bars: Bars,
        titles: Sequence[str] = (),
    ) -> None:
        """Keep both sides; `recorded` are samples and PyTorch's results, `module` a fresh model."""
        self.model, self.given, self.sessions = factory.make(), recorded, sessions
        self.module, self.bars, self.titles = module, bars, titles
        self.settings = {} if module is None else dict(enumerate(configs_in(module)))
        self.is_seeded = any(session.is_seeded for session in sessions)
        self.in_order: list[str] = []
        self.ties: list[str] = []
        self.refused: Exception | None = None
        self.needed: dict[int, list[Any]] = {}
        self.pairs = Paired()

    def sample(self, entry: Any, index: int, mode: str) -> Sample:
        title = self.titles[index] if self.titles else f'sample {index}'
        return Sample(f'whole model, {title}', index, titles=[title])

    def want(self, sample: Sample, state: Any) -> Step:
        return Step(facts=dict(result=self.given[sample.data][1]))

    def got(self, sample: Sample, state: Any) -> Step:
        with swapped(self.model, self.sessions), seeded(self.is_seeded):
            return Step(facts=dict(result=run_test_path(self.model, self.given[sample.data][0])))

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        self.pairs = pairs = paired('results', *(step.facts['result'] for step in (want, got)), self.bars)
        self.in_order += pairs.in_order
        reference, candidate = filled(*pairs.arrays)
        if self.bars.is_float32 and self.module is not None and pairs.failures:
            candidate = {**candidate, **self._tied(sample, reference, candidate)}
        want = dataclasses.replace(want, tensors=reference)
        return want, dataclasses.replace(got, tensors=candidate), pairs.failed

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, np.ndarray]:
        return filled(*self._again(sample).arrays)[1]

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case | None:
        """Match boxes and masks; the rest of the test path is PyTorch's, on the files' tensors."""
        (title,) = sample.titles
        case = dataclasses.replace(case, sample=title)
        if isinstance(got, Exception):
            if self.titles and isinstance(got, UsageError):
                self.refused = got
                return None
            return case
        rows: list[DetectionRow] = []
        for index, (task, name, *sides) in enumerate(self.pairs.scored):
            self.task, settings = task, settings_of(task, name, *sides)
            run = functools.partial(self._scored_again, sample, index) if self.bars.is_float32 else None
            rows += matched(self, [name], *([side] for side in sides), run, **settings)
        own = paired('results', *[got.facts['result']] * 2).scored
        substituted = tuple(match(*lists, self.bars, **settings_of(*lists)) for lists in own)
        return dataclasses.replace(case, detections=tuple(rows), substituted=substituted)

    def _run(self, samples: Sequence[Any]) -> tuple[Any, list[Choice]]:
        model = copy.deepcopy(self.module)  # a run changes the memory
        for sample in samples:
            with torch.no_grad(), _Choices() as choices:
                result = run_test_path(model, sample)
        return result, choices.found

    def _start(self, index: int) -> list[Choice]:
        """Find the samples that affect a sample's results: itself alone, or all before it; return choices."""
        for first in (index, 0):
            self.needed[index] = [sample for sample, _ in self.given[first : index + 1]]
            result, choices = self._run(self.needed[index])
            if same_bits(flat_arrays(result), flat_arrays(self.given[index][1])):
                break
        return choices

    def _again(self, sample: Sample) -> Paired:
        return paired(
            'results', self.given[sample.data][1], self._run(self.needed[sample.data])[0], self.bars
        )

    def _scored_again(self, sample: Sample, index: int) -> list[Any]:
        try:
            return [self._again(sample).scored[index][-1]]
        except Exception:  # code of any kind may need its limits
            return [self.pairs.scored[index][-2]]

    def _tied(self, sample: Sample, reference: Arrays, candidate: Arrays) -> dict[str, np.ndarray]:
        """Return PyTorch's integers where both sides choose among values that are equal to rounding."""
        try:
            choices = self._start(sample.data)
        except Exception:  # a model with locks, or whose test path runs once
            self.module = None
            return {}

        def values_of(choices: Sequence[Choice]) -> dict[str, np.ndarray]:
            return {str(index): values for index, (values, _) in enumerate(choices)}

        def run() -> dict[str, np.ndarray]:
            return values_of(self._run(self.needed[sample.data])[1])

        rounding, tied = rounding_of(self.module, values_of(choices), run), {}
        for name, array in reference.items():
            other = candidate.get(name)
            if other is None or array.dtype.kind not in 'iu' or array.shape != other.shape:
                continue
            sides = (side.ravel().astype(np.int64) for side in (array, other))
            if count := _count_tied(*sides, choices, rounding):
                self.ties.append(f'{sample.titles[0]}, {name}: {count} of {array.size} values')
                tied[name] = array
        return tied


def _count_tied(expected: np.ndarray, got: np.ndarray, choices: Sequence[Choice], rounding: Rounding) -> int:
    """Return the number of integers that differ, if every one is a choice within rounding; or 0."""
    places = np.flatnonzero(expected != got)
    for index, (values, indices) in enumerate(choices if len(places) else ()):
        if not np.array_equal(indices, expected) or not 0 <= got.min() <= got.max() < values.shape[1]:
            continue
        gaps = values[places, expected[places]] - values[places, got[places]]
        if (gaps > MOST_ROUNDING * DEFAULT_RTOL * np.abs(values[places]).max(axis=1)).any():
            continue
        for draws in range(DRAWS + 1):
            apart = rounding(draws).get(str(index), np.zeros_like(values))[places].max(axis=1)
            if (gaps <= ROUNDINGS * 2 * apart).all():
                return len(places)
    return 0


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
    settings = sessions, None if folder.is_seeded else factory.make(), bars
    calls = Calls(parts, *settings)
    whole = Whole(factory, [*zip(samples, recording.results, strict=True)], *settings)
    cases, lit = compare(calls)[0], ([], [])
    if all(case.traced for case in cases):
        verdict.add_failures([UNSEEN])
    if pictures := lit_samples(samples[0]):
        lit = _lit_cases(verdict, factory, parts, pictures, folder.is_seeded, settings)
    else:
        verdict.notes.append('no dark or bright image: the samples have no images of three channels')
    cases += lit[0]
    verdict.add_outputs(cases)
    is_whole = all(case.passed for case in cases)
    results = [dataclasses.replace(case, whole=is_whole) for case in (*compare(whole)[0], *lit[1])]
    _judge_results(verdict, results, whole, bars)
    if calls.first_failed is not None:
        verdict.notes.append(f'first difference: {_place(factory, folder, *calls.first_failed)}')
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
        wrong += paired('results', before, result).failures
    if not compared:
        verdict.notes.append(
            'other samples than at the export; their results at the export were not compared'
        )
        return
    title = f"PyTorch's results equal those at the export ({compared} samples)"
    detail = f'the code around the parts, or its inputs, changed: {wrong[0]}' if wrong else ''
    verdict.findings.append(check_finding(Check(title, not wrong, detail)))


def _lit_cases(
    verdict: Verdict,
    factory: ModelFactory,
    parts: Sequence[RecordedPart],
    pictures: Mapping[str, Any],
    is_seeded: bool,
    settings: tuple[Any, ...],
) -> tuple[list[Case], list[Case]]:
    """Return the cases of the parts, and of the whole model, on other views of a sample."""
    samples, refused = [*pictures.values()], None
    try:
        steps = [part.form.part for part in parts]
        recording = record(factory.make(), steps, samples, run_test_path, is_seeded)
    except UsageError as error:  # a part is not called
        refused = error
    else:
        pairs = [*zip(samples, recording.results, strict=True)]
        whole = Whole(factory, pairs, *settings, [*pictures])
        cases, refused = compare(whole)[0], whole.refused
        verdict.notes += [f'beside a tie: {line}' for line in whole.ties]
    if refused:
        verdict.notes.append(f'no dark or bright image: {one_line(refused)[:300]}')
        return [], []
    called = [dataclasses.replace(part, calls=recording.calls[part.form.part]) for part in parts]
    return compare(Calls(called, *settings, [*pictures]))[0], cases


def _judge_results(verdict: Verdict, cases: list[Case], whole: Whole, bars: Bars) -> None:
    """Add the cases of the whole model: after equal parts rounding explains a few results (`accept_rest`)."""
    verdict.notes += [f'beside a tie: {line}' for line in whole.ties]
    if bars.is_float32:
        cases, alone = accept_rest(cases)
        verdict.notes += [f'without a partner end to end: {line}' for line in alone]
    else:
        cases, reason = accept_rate(cases, bars)
        verdict.add_failures(filter(None, [reason]), 'whole model')
    verdict.add_outputs(cases)
    rows = [row for case in cases for row in case.detections]
    verdict.notes += [f'{row.image}: at a tie: {line}' for row in rows for line in row.excused]
    if whole.in_order:
        names = ', '.join(dict.fromkeys(whole.in_order))
        verdict.notes.append(f'compared in order, since no task matches results of this form: {names}')
    has_arrays = any(case.tensors for case in cases)
    if not (rows or has_arrays):
        verdict.add_failures(['its results have no array, so nothing was compared'], 'whole model')
    elif not (has_arrays or any(row.reference for row in rows)):
        text = 'nothing was found in any sample; use samples with objects, or trained weights'
        verdict.add_failures([text], 'whole model')


def _place(
    factory: ModelFactory, folder: CutFolder, part: RecordedPart, session: PartSession, call: PartCall
) -> str:
    """Return where a part's file first differs from PyTorch."""
    module = PartModule(factory.make(), part.form, call, part.paths).eval()
    names, inputs = folder.names(session.entry), part.form.inputs_of(call)
    feeds = {names.get(name, name): to_array(tensor) for name, tensor in inputs.items()}
    model = load(str(folder.file(session.entry)))
    try:
        place = locate(Search(Compared.of(module, model, feeds)), model)
    except Exception as error:  # also of the user's code
        place = f'could not be located: {one_line(error)[:200]}'
    return f'{part.form.part.text}, {call.title}: {place or "in no single node"}'


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


# Parts of any detector, from Python.


@dataclasses.dataclass(frozen=True)
class ExportedParts:
    """Result of `export_parts`.

    Attributes:
        folder: the files and their manifest.
        factory: config and checkpoint.
        samples: keyword arguments of the test path.
        recorded: parts with their calls, and the run of the test path.
    """

    folder: CutFolder
    factory: ModelFactory
    samples: Sequence[Any]
    recorded: tuple[list[RecordedPart], Recording]

    def prove(self) -> Verdict:
        """Prove the files against the model, on the samples of the export."""
        with after_weights():
            return prove_folder(self.factory, self.folder, self.samples, self.recorded)


def export_parts(
    config: str | Path,
    checkpoint: str | Path,
    parts: Sequence[str],
    output: str | Path = 'cut',
    *,
    samples: Sequence[dict[str, Any]] = (),
    names: Mapping[str, str] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ExportedParts:
    """Export parts of a detector, as `mm2onnx export --parts`. Call `prove` to compare.

    Args:
        config: mmcv 1.x config; the model needs no family.
        checkpoint: the weights.
        parts: paths of modules, joined by '+', or methods: 'backbone+neck', 'extract_feat()'.
        output: folder for `parts.json` and a file per part.
        samples: keyword arguments of the test path, in order; (): the config's data set, else views of
            the package's image. A proof needs at least two.
        names: path of a tensor, such as 'mlvl_feats.0', -> its name in the files.
        cfg_options: dotted key -> value that overrides the config.
        options: `opset`, `exporter` ('torchscript', 'dynamo'), `precision` ('fp32', 'fp16'), `simplify`,
            `seeded`.

    Raises:
        UsageError: unreadable config, or unknown part.
        ConfigError: a part cannot be one graph; the message names the argument or constant.
        ExportError: the exporter failed.
    """
    factory = read_model(config, checkpoint, cfg_options)
    chosen = list(samples) or samples_of(factory.cfg)[0]
    folder, *recorded = export_folder(factory, list(parts), chosen, output, options, names)
    return ExportedParts(folder, factory, chosen, tuple(recorded))
