"""The benchmark of the whole product: every case measured by `benchmark.py`, and its ratios kept.

Nothing is timed here. A case is one process of `benchmark.py` per number of threads and per device, in which
all engines and files take turns. What is kept are ratios.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._pages.benchmarks.cases import CASES, TOYS
from docs._pages.benchmarks.prepare import StepError, Workshop, from_root, shown, size_of
from docs._pages.benchmarks.whole_results import forms_of, merged
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import BASELINE, ENGINES, check_names, engines_of, present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from docs._pages.benchmarks.cases import Case, Step
    from docs._pages.benchmarks.prepare import Deadline

TOOL = 'tools/analysis_tools/benchmark.py'


@dataclasses.dataclass(frozen=True)
class Settings:
    """How cases are measured.

    Attributes:
        engines: that may take part, of `ENGINES`.
        threads: one run each, on the CPU.
        gpu: name of the GPU; '' measures none.
        rounds: of every run, at most.
        warmup: rounds before them.
        seconds: after which no round of a run begins.
        memory: whether memory is measured.
        only_files: make files and measure memory, and time nothing.
        sweeps: real sweeps for sparse backbones.
    """

    engines: Sequence[str]
    threads: Sequence[int]
    gpu: str = ''
    rounds: int = 20
    warmup: int = 3
    seconds: float = 90
    memory: bool = True
    only_files: bool = False
    sweeps: Sequence[str] = ()


def engines_for(case: Case, settings: Settings, gpu: bool) -> list[str]:
    """Return the engines that take part in a case on the CPU or on the GPU; PyTorch is in both."""
    engines = {BASELINE, *(name for name, row in ENGINES.items() if row.gpu == gpu)} & set(settings.engines)
    return [name for name in engines_of(case.kind) if name in engines]


def places(case: Case, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield where a case is measured: device and threads."""
    for threads in settings.threads:
        yield dict(device='cpu', threads=threads)
    if settings.gpu and case.kind == 'images':
        yield dict(device=settings.gpu, threads=settings.threads[-1])


def command(
    case: Case, settings: Settings, place: Mapping[str, Any], shop: Workshop, files: Sequence[Step]
) -> list[str]:
    """Return the words of `benchmark.py` for a case at one place."""
    gpu = place['device'] != 'cpu'
    engines = engines_for(case, settings, gpu)
    files = files if any(ENGINES[name].files for name in engines) else ()
    words = [TOOL, case.config, shop.checkpoint(case)]
    words += ['--onnx', *(str(shop.target(case, step)) for step in files)] if files else []
    words += ['--engines', ','.join(engines), '--threads', str(place['threads'])]
    words += ['--max-iter', str(settings.rounds), '--warmup', str(settings.warmup)]
    words += ['--max-seconds', f'{settings.seconds:g}', '--skip-refused']
    if case.kind == 'images':
        words += ['--shape', *map(str, case.shape)] if case.shape and not files else []
    if case.sweeps and settings.sweeps:
        words += ['--sweep', *settings.sweeps]
    words += ['--device', 'cuda:0'] if gpu else []
    return [*words, *case.options]


# ---- one case


def run_case(case: Case, settings: Settings, shop: Workshop, deadline: Deadline) -> dict[str, Any]:
    """Make what a case needs and measure it.

    Returns:
        Its entry: title, config, kind, weights, input, before (commands), files, memory, runs. What failed
        has a `reason`.
    """
    entry: dict[str, Any] = dict(
        title=case.title, config=case.config, kind=case.kind,
        weights='trained' if case.checkpoint else 'seeded', input='', before=[], files=[], memory={}, runs=[],
    )  # fmt: skip
    entry['before'] = [shown(shop.words(case, step)) for step in case.steps if not step.label]
    reasons = make_files(case, shop, deadline)
    made_steps = [step for step in case.files if step.key not in reasons]
    entry['files'] = [file_row(case, step, shop, reasons.get(step.key, {})) for step in case.files]
    for place in places(case, settings):
        if not made_steps:
            entry['runs'].append(dict(place, **next(iter(reasons.values()))))
            continue
        if settings.memory and place['device'] == 'cpu' and not entry['memory']:
            try:
                entry['memory'] = memory_of(case, settings, place, shop, made_steps)
            except StepError as error:
                entry['memory_reason'] = str(error)
        if not settings.only_files:
            entry['runs'].append(run_place(case, settings, place, shop, made_steps, deadline))
            entry['input'] = entry['runs'][-1].pop('input', '') or entry['input']
    return entry


def make_files(case: Case, shop: Workshop, deadline: Deadline) -> dict[str, dict[str, Any]]:
    """Make the files of a case; returns step -> why its file is not there, as entries have it."""
    reasons: dict[str, dict[str, Any]] = {}
    for step in case.steps:
        needed = next((key for key in reasons if f'{{{key}}}' in step.command), None)
        if needed:
            reason = f'needs {needed}: {reasons[needed]["reason"]}'
            reasons[step.key] = dict(reasons[needed], reason=reason)
        elif deadline.passed:
            reasons[step.key] = spent(deadline)
        else:
            try:
                shop.make(case, step)
            except StepError as error:
                reasons[step.key] = dict(reason=str(error))
    return reasons


def spent(deadline: Deadline) -> dict[str, Any]:
    """Return why something was not begun."""
    return dict(left_out=True, reason=f'left out: the {deadline.minutes:g} minutes were spent')


def file_row(case: Case, step: Step, shop: Workshop, reason: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said about a file: label, precision, command, size against the float file."""
    row = dict(label=step.label, precision=step.precision, command=shown(shop.words(case, step)))
    if reason:
        return dict(row, **reason)
    source = next((file_step for file_step in case.files if f'{{{file_step.key}}}' in step.command), None)
    if source is None:
        return row
    sizes = [size_of(shop.target(case, file_step)) for file_step in (step, source)]
    return dict(row, size_ratio=round(sizes[0] / sizes[1], 3))


def memory_of(
    case: Case, settings: Settings, place: Mapping[str, Any], shop: Workshop, made_steps: Sequence[Step]
) -> dict[str, float]:
    """Return row -> peak memory against PyTorch's; empty where the system does not tell."""
    brief = dataclasses.replace(settings, rounds=1, warmup=1, seconds=1)
    keys = [shop.key(case, step) for step in made_steps]
    result = shop.memory(case, command(case, brief, place, shop, made_steps), keys)
    rows, _ = rows_of(case, result, shop)
    base = next((row['peak_mb'] for row in rows if row['engine'] == BASELINE), None)
    if not base:
        return {}
    return {row_key(row): round(row['peak_mb'] / base, 3) for row in rows if row['peak_mb']}


def run_place(
    case: Case,
    settings: Settings,
    place: Mapping[str, Any],
    shop: Workshop,
    made_steps: Sequence[Step],
    deadline: Deadline,
) -> dict[str, Any]:
    """Measure a case at one place; returns its run, or why there is none."""
    if deadline.passed:
        return dict(place, **spent(deadline))
    name = f'{"gpu" if place["device"] != "cpu" else "cpu"}_{place["threads"]}_threads'
    settings = dataclasses.replace(settings, seconds=deadline.seconds(settings.seconds))
    words = [*command(case, settings, place, shop, made_steps), '--no-memory']
    try:
        result = shop.measure(case, words, name)
    except StepError as error:
        return dict(place, reason=str(error), command=shown(words))
    rows, facts = rows_of(case, result, shop)
    refused = [
        dict(
            engine=row['engine'],
            label=label_of(case, shop, row['file'], row['label']),
            reason=from_root(row['reason']),
        )
        for row in result.get('refused', ())
    ]
    for row in rows:
        row.pop('peak_mb')
    return dict(
        place, **facts, rows=rows, refused=refused, other_load=result['other_load'],
        notes=[note for note in result['notes'] if note], forms=forms_of(result), command=shown(words),
    )  # fmt: skip


def label_of(case: Case, shop: Workshop, path: str, without: str = '') -> str:
    """Return the label of a file, by its name: kept figures stay true where the repository is moved."""
    if not path:
        return without
    name = Path(path).name
    return next(step.label for step in case.files if name == shop.target(case, step).name)


def rows_of(
    case: Case, result: Mapping[str, Any], shop: Workshop
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of a result of `benchmark.py`, and its input and rounds.

    A row has engine, label, precision, ratio (median, q1, q3), found, peak_mb.
    """
    source, shape = result, result.get('input_shape', '')
    if 'sets' in result:
        source = next((voxel_set for voxel_set in result['sets'] if voxel_set['real']), result['sets'][-1])
        shape = f'{source["voxels"]:,} voxels ({"a real sweep" if source["real"] else "generated"})'
    precisions = {step.label: step.precision for step in case.files}
    rows = []
    for row in source['contenders']:
        label = label_of(case, shop, row['file'], row.get('form', ''))
        ratio = row['ratio_to_torch']
        rows.append(dict(
            engine=row['engine'], label=label, precision=precisions.get(label, 'fp32'),
            ratio={key: ratio[key] for key in ('median', 'q1', 'q3')} if ratio else None,
            found=row.get('detections_per_image'), peak_mb=(row.get('memory') or {}).get('peak_mb'),
        ))  # fmt: skip
    return rows, dict(input=shape, rounds=source['rounds'])


def row_key(row: Mapping[str, Any]) -> str:
    """Return what a row goes by within a case."""
    return f'{row["engine"]} {row["label"]}'.strip()


# ---- many cases


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Return the cases of these names, all without names.

    Raises:
        UsageError: there is no such case.
    """
    case_names = [case.name for case in cases]
    unknown = [name for name in names if name not in case_names]
    if unknown:
        raise UsageError(f'--only {" ".join(unknown)}: no such case; there are {", ".join(case_names)}')
    return [case for case in cases if not names or case.name in names]


def chosen_engines(names: Sequence[str] | None) -> list[str]:
    """Return the engines of the command line, or all that are here; PyTorch has to be among them."""
    if names is None:
        return present()
    check_names(names, option=f'--engines {" ".join(names)}')
    if BASELINE not in names:
        raise UsageError(
            f'--engines {" ".join(names)}: ratios are to PyTorch, so {BASELINE} has to be among them'
        )
    return [name for name in ENGINES if name in names]


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    shop: Workshop,
    deadline: Deadline,
    results: dict[str, Any],
    done: Callable[[str, dict[str, Any]], None] = lambda name, results: None,
) -> dict[str, Any]:
    """Run cases one after the other; one that fails does not stop the others.

    Args:
        cases: to run.
        settings: of all.
        shop: makes files.
        deadline: of all.
        results: of before; the new entries go into it.
        done: is told of every case, and gets the results so far.
    """
    for case in cases:
        entry = merged(results['cases'].get(case.name), run_case(case, settings, shop, deadline))
        results['cases'][case.name] = entry
        results['cases'] = ordered(results['cases'])
        done(case.name, results)
    return results


def ordered(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries in the order of the list of cases; unknown ones come last."""
    order = {case.name: index for index, case in enumerate((*CASES, *TOYS))}
    return dict(sorted(entries.items(), key=lambda item: order.get(item[0], len(order))))
