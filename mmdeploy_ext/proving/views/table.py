"""The verdict on the console: a line per level, failures, the claim, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.commands import command
from mmdeploy_ext.base.errors import escape
from mmdeploy_ext.families.base import BACKBONE, FAMILIES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.runtime.detect import runner_of
from mmdeploy_ext.runtime.detections import candidates_needed
from mmdeploy_ext.spec.registry import detector_options, registration_of
from mmdeploy_ext.upstream.compat import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from mmdeploy_ext.spec.verdict import Verdict


WIDTH = 14
"""Width of the first column."""
MAX_LINES = 8
"""Listed failures, classes and so on of each kind."""
MAX_CHARACTERS = 260
"""Length of a failure."""


def print_verdict(verdict: Verdict, console: Console) -> None:
    for line in replaced.lines(verdict.subject.get('replaced', {})):
        console.print(escape(line), soft_wrap=True, highlight=False)
    for finding in verdict.findings:
        if 'installed' in finding.figures:
            console.print(f'[red]{escape(finding.subject)} {escape(finding.text)}[/red]', soft_wrap=True)
    for title, text in level_lines(verdict):
        console.print(f'{title:{WIDTH}} {escape(text)}', soft_wrap=True)
    for text in listed(told_below(verdict)):
        console.print(f'[bold red]{"FAILED":{WIDTH}}[/bold red] {escape(cut(text))}', soft_wrap=True)
    about = dict(classes=verdict.model_classes, untraced=verdict.untraced, unreached=verdict.unreached)
    for title, lines in dict(**about, note=verdict.notes).items():
        in_full = title == 'untraced' and not verdict.passed  # one of these methods may be the cause
        for index, text in enumerate(lines if in_full else listed(lines)):
            console.print(f'{title if index == 0 else "":{WIDTH}} {escape(text)}', soft_wrap=True)
    colour = 'bold green' if verdict.passed else 'bold red'
    console.print(f'[{colour}]{escape(last_line(verdict))}[/{colour}]', soft_wrap=True)
    if following := next_command(verdict):
        console.print(f'next: {escape(following)}', soft_wrap=True)


def told_below(verdict: Verdict) -> list[str]:
    """Return the failures that no line above shows."""
    above = [f.line for f in verdict.findings if f.level == 'file' or 'installed' in f.figures]
    return [text for text in verdict.failures if text not in above]


def level_lines(verdict: Verdict) -> Iterator[tuple[str, str]]:
    if verdict.of('file'):
        yield 'file', graphs_text(verdict)
    if surroundings := verdict.of('surroundings'):
        checks = [finding for finding in surroundings if finding.subject != 'preprocessing']
        failed = sum(not finding.passed for finding in checks)
        texts = [f'{len(checks) - failed} of {len(checks)} checks' if failed else f'{len(checks)} checks']
        for finding in surroundings:
            if finding.subject == 'preprocessing' and finding.passed:
                count, unit = finding.figures['samples'], finding.figures['unit']
                texts.insert(1, f'preprocessing equal on {counted(count, unit)}')
            elif finding.subject.startswith('weights of ') and finding.passed:
                texts.append(finding.subject)
        yield 'surroundings', ', '.join(texts)
    if verdict.with_figure('case'):
        yield 'outputs', outputs_text(verdict)
    for finding in verdict.of('metrics'):
        values = f'PyTorch {finding.figures["reference"]:.4f}, ONNX {finding.figures["candidate"]:.4f}'
        yield 'metrics', f'{finding.subject}: {values}, {finding.text}'


def graphs_text(verdict: Verdict) -> str:
    graphs = verdict.of('file')
    texts = [finding.text for finding in graphs if not finding.passed]
    if texts or len(graphs) == 1:
        return cut('; '.join(texts or [graphs[0].text]))
    reasons = {finding.figures['left_out'] for finding in graphs}
    if len(reasons) == 1 and '' not in reasons:
        return reasons.pop()
    nodes = sum(finding.figures['nodes'] for finding in graphs)
    equal = sum(finding.figures['equal'] for finding in graphs)
    remarks = [finding.text for finding in graphs if finding.figures['left_out']]
    return '; '.join([f'{equal} of {len(graphs)} graphs equal fresh exports ({nodes:,} nodes)', *remarks])


def outputs_text(verdict: Verdict) -> str:
    summary = verdict.summary()
    texts = [counted(summary['inputs'], 'input')]
    if verdict.series:
        texts = [f'{summary["sequence_frames"]} frames {" and ".join(verdict.series)}']
    cosines = [finding.figures['cosine'] for finding in verdict.with_figure('cosine')]
    if not verdict.bars.is_float32 and (measured := [cosine for cosine in cosines if cosine is not None]):
        texts.append(f'cosine {cosine_text(min(measured))} or more')
    elif summary['worst_rel'] is not None:
        texts.append(f'tensors within {short(summary["worst_rel"])}')
    if verdict.with_figure('image'):
        place = f'distance {short(summary["worst_distance"])} m'
        if summary['worst_distance'] is None:
            place = f'IoU {summary["worst_iou"]:.4f}'
        worst = f'(worst {place}, score {short(summary["worst_score"])})'
        texts.append(f'{summary["matched"]} of {summary["reference"]} detections matched {worst}')
    if alone := [finding.figures for finding in verdict.with_figure('substituted')]:
        matched, reference = (sum(figures[name] for figures in alone) for name in ('matched', 'reference'))
        texts.append(f'post-processing alone {matched} of {reference}')
    return ', '.join(texts)


def last_line(verdict: Verdict) -> str:
    """Return the claim of a verdict, `PROVEN ...`, or `NOT PROVEN: ...` with the first reason."""
    if not verdict.passed:
        first, *more = verdict.failures
        return f'{verdict.title}: {cut(first)}' + (f'; and {len(more)} more' if more else '')
    summary, subject = verdict.summary(), verdict.subject
    inputs = f'{summary["sequence_frames"]} frames' if verdict.series else counted(summary['inputs'], 'input')
    found = f' ({summary["matched"]} detections)' if summary['matched'] else ''
    model = subject.get('recorded') or subject.get('module') or 'the PyTorch model'
    equals = 'equals' if verdict.proven else 'is near'
    if subject.get('recorded'):
        return f'{verdict.title} {subject.get("file")} {equals} {model}{found}'
    return f'{verdict.title} {subject.get("file", "the ONNX model")} {equals} {model} on {inputs}{found}'


def listed(lines: Sequence[str]) -> list[str]:
    """Return at most `MAX_LINES` lines, and how many more there are."""
    more = [f'{len(lines) - MAX_LINES} more, see --json'] if len(lines) > MAX_LINES else []
    return [*lines[:MAX_LINES], *more]


def cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f'{text[:MAX_CHARACTERS]} ...'


def counted(count: int, unit: str) -> str:
    """Return '1 input' or '2 inputs'."""
    return f'{count} {unit}' if count == 1 else f'{count} {unit}s'


def short(value: float | None) -> str:
    """Return a figure as text, '1.2e-06'; '0' for 0, '-' for None."""
    return '-' if value is None else f'{value:.1e}' if value else '0'


def figure(value: float | None) -> str:
    if value is None:
        return '-'
    return '0' if value == 0 else f'{value:.2e}'


def cosine_text(value: float | None) -> str:
    """Return a cosine with seven decimals, at most 1; '-' for None."""
    return '-' if value is None else f'{min(value, 1.0):.7f}'


def next_command(verdict: Verdict) -> str:
    """Return the next command: one that uses a proven file, else one that helps."""
    subject = verdict.subject
    if 'module' in subject:
        return ''
    model, file = _model_of(subject), subject.get('file', 'MODEL.onnx')
    family = FAMILIES.get(subject.get('family'))
    if verdict.passed and subject.get('options', {}).get('nms_plugin'):
        return f'{command("tensorrt")} {shlex.quote(file)} --package tensorrt'
    if verdict.passed:
        form = subject.get('form') or Path(list(subject.get('files', ['']))[-1]).stem
        runner = runner_of(subject.get('family', ''), form, subject.get('inputs', ()))
        used_by = registration_of(subject.get('family', '')).used_by
        contract = contract_of(family, subject.get('options', {})) if family else None
        of_form = (contract and contract.used_by) or used_by.get(form) or used_by['']
        words = f'{runner} {{file}} IMAGE_OR_FOLDER' if runner else of_form
        path = Path(file)
        folder = path.parent if path.suffix == '.onnx' else path
        values = model | dict(file=file, folder=folder, place=folder.resolve())
        quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
        name, _, words = words.partition(' ')
        return f'{command(name)} {words.format(**quoted)}'
    failed = [finding for finding in verdict.findings if not finding.passed]
    not_run = [finding.figures['installed'] for finding in failed if 'installed' in finding.figures]
    others = ('preprocessing', 'untraced')
    if any(f.level in ('file', 'surroundings') and f.subject not in others for f in failed) and not not_run:
        return f'{export_command(subject, file)}   # export it again'
    tensors = any(finding.figures.get('max_rel') is not None for finding in failed)
    failed = [finding for finding in failed if 'image' in finding.figures]
    limits = [candidates_needed(finding.text) for finding in failed]  # of each failed row, by option
    if limits and all(limits):
        changes = next((options for options in limits if 'made_for' in options), None)
        if changes is None:
            names = [name for options in limits for name in options]
            changes = {name: max(options.get(name, 0) for options in limits) for name in names}
        again = export_command(subject, file, **changes)
        return f'{again}   # the limit of candidates removed results'
    if subject.get('form') == 'full' and failed and 'raw' in getattr(family, 'forms', ('raw',)):
        if tensors:  # before the post-processing: the other form would be as wrong
            words = shlex.join([*model.values(), file])
            return f'{command("graph")} diff {words}   # the first tensor that differs'
        again = export_command(subject, f'{file.removesuffix(".onnx")}_raw.onnx', form='raw')
        return f'{again}   # shows whether the network or the post-processing differs'
    words = [*model.values(), file, *_model_words(subject, subject.get('options', {}))]
    if not_run:
        installed = ' and '.join(not_run)
        words += ['--library', 'installed']
        return f'{command("verify")} {shlex.join(words)}   # prove it against the installed {installed}'
    words += ['--report', 'work_dirs/report']
    return f'{command("verify")} {shlex.join(words)}   # figures and images of every comparison'


def export_command(subject: Mapping[str, Any], file: str, **changes: Any) -> str:
    family, options = FAMILIES.get(subject.get('family')), {**subject.get('options', {}), **changes}
    name = 'export --backbone' if family is not None and family.product == BACKBONE else 'export'
    words = [*_model_of(subject).values(), '--verify', '--out', file]
    for option in detector_options() if family is None else family.options:
        words += option.words(options) if option.name in options else []
    return f'{command(name)} {shlex.join(words + _model_words(subject, options))}'


def _model_words(subject: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    values = {
        '--cfg-options': [f'{key}={value}' for key, value in options.get('cfg_options', {}).items()],
        '--ignore-keys': subject.get('ignored_keys', []),
    }
    return [word for option, typed in values.items() if typed for word in (option, *typed)]


def _model_of(subject: Mapping[str, Any]) -> dict[str, str]:
    return {name: subject.get(name, name.upper()) for name in ('config', 'checkpoint')}
