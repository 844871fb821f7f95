"""The command to run after a verdict; families name the tools that use their files and export them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.registry import detector_options
from mmdeploy_ext.core.commands import command
from mmdeploy_ext.families.base import FAMILIES, Family
from mmdeploy_ext.runtime.detect import runner_of
from mmdeploy_ext.runtime.detections import candidates_needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.proving.verdict import Verdict


def next_command(verdict: Verdict) -> str:
    """Return the command to run next: one that uses the files if the verdict passed, else one that helps.

    '' after the proof of a module.
    """
    subject = verdict.subject
    if 'module' in subject:
        return ''
    model, file = _model_of(subject), subject.get('file', 'MODEL.onnx')
    family = FAMILIES.get(subject.get('family'))
    if verdict.passed:
        form = subject.get('form') or Path(list(subject.get('files', ['']))[-1]).stem
        runner = runner_of(subject.get('family', ''), form)
        used_by = getattr(family, 'used_by', Family.used_by)
        words = f'{runner} {{file}} IMAGE_OR_FOLDER' if runner else used_by.get(form) or used_by['']
        path = Path(file)
        values = model | dict(file=file, folder=path.parent if path.suffix == '.onnx' else path)
        quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
        name, _, words = words.partition(' ')
        return f'{command(name)} {words.format(**quoted)}'
    failed = [finding for finding in verdict.findings if not finding.passed]
    not_run = [finding.figures['installed'] for finding in failed if 'installed' in finding.figures]
    others = ('preprocessing', 'untraced')
    if any(f.level in ('file', 'surroundings') and f.subject not in others for f in failed) and not not_run:
        return f'{export_command(subject, file)}   # export it again'
    failed = [finding for finding in failed if 'image' in finding.figures]
    limits = [candidates_needed(finding.text) for finding in failed]  # of each failed row, by option
    if limits and all(limits):
        names = [name for options in limits for name in options]
        larger = {name: max(options.get(name, 0) for options in limits) for name in names}
        again = export_command(subject, file, **larger)
        return f'{again}   # only the number of candidates cut results off'
    if subject.get('form') == 'full' and failed and 'raw' in getattr(family, 'forms', ('raw',)):
        again = export_command(subject, f'{file.removesuffix(".onnx")}_raw.onnx', form='raw')
        return f'{again}   # is it the network or the post-processing?'
    words = [*model.values(), file, *_override_words(subject.get('options', {}))]
    if not_run:
        installed = ' and '.join(not_run)
        words += ['--library', 'installed']
        return f'{command("verify")} {shlex.join(words)}   # prove it against the installed {installed}'
    words += ['--report', 'work_dirs/report']
    return f'{command("verify")} {shlex.join(words)}   # figures and pictures of every comparison'


def export_command(subject: Mapping[str, Any], file: str, **changes: Any) -> str:
    """Return the command that exports a file again.

    Args:
        subject: `Verdict.subject`, of which `family`, `config`, `checkpoint` and `options` are read.
        file: path to write.
        changes: options that differ from those of the file that was proven.
    """
    family, options = FAMILIES.get(subject.get('family')), {**subject.get('options', {}), **changes}
    name = 'export' if family is None else family.exported_by
    words = [*_model_of(subject).values(), '--verify', '--output-file', file]
    for option in detector_options() if family is None else family.options:
        words += option.words(options) if option.name in options else []
    return f'{command(name)} {shlex.join(words + _override_words(options))}'


def _override_words(options: Mapping[str, Any]) -> list[str]:
    """Return the overrides of the config that a file was exported with."""
    overrides = [f'{key}={value}' for key, value in options.get('cfg_options', {}).items()]
    return ['--cfg-options', *overrides] if overrides else []


def _model_of(subject: Mapping[str, Any]) -> dict[str, str]:
    return {name: subject.get(name, name.upper()) for name in ('config', 'checkpoint')}
