"""The command that makes sense after a verdict; families say which tools use their files and export them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.registry import detector_options
from mmdeploy_ext.core.commands import command
from mmdeploy_ext.families.base import FAMILIES, Family
from mmdeploy_ext.runtime.detections import candidates_needed
from mmdeploy_ext.runtime.family_runtime import runner_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.proving.verdict import Verdict


def next_command(verdict: Verdict) -> str:
    """Return the command that makes sense after this verdict."""
    subject = verdict.subject
    known = _model_of(subject) | dict(file=subject.get('file', 'MODEL.onnx'))
    if verdict.passed:
        form = subject.get('form') or Path(list(subject.get('files', ['']))[-1]).stem
        runner = runner_of(subject.get('family', ''), form)
        used_by = getattr(FAMILIES.get(subject.get('family')), 'used_by', Family.used_by)
        words = f'{runner} {{file}} IMAGE_OR_FOLDER' if runner else used_by.get(form) or used_by['']
        place = Path(known['file'])
        given = known | dict(folder=place.parent if place.suffix == '.onnx' else place)
        quoted = {name: shlex.quote(str(value)) for name, value in given.items()}
        name, _, words = words.partition(' ')
        return f'{command(name)} {words.format(**quoted)}'
    if not all(check.passed for check in (*verdict.structure, *verdict.graphs)):
        return f'{export_command(subject, known["file"])}   # export it again'
    failed = [row for case in verdict.cases for row in case.detections if not row.passed]
    needed = [candidates_needed(row.reason) for row in failed]
    if needed and all(needed):
        asked = {name: max(one.get(name, 0) for one in needed) for one in needed for name in one}
        again = export_command(subject, known['file'], **asked)
        return f'{again}   # only the number of candidates cut results off'
    forms = getattr(FAMILIES.get(subject.get('family')), 'forms', ('raw',))
    if subject.get('form') == 'full' and failed and 'raw' in forms:
        raw = f'{known["file"].removesuffix(".onnx")}_raw.onnx'
        again = export_command(subject, raw, form='raw')
        return f'{again}   # is it the network or the post-processing?'
    words = [*known.values(), *_override_words(subject.get('options', {})), '--report', 'work_dirs/report']
    return f'{command("verify")} {shlex.join(words)}   # figures and pictures of every comparison'


def export_command(subject: Mapping[str, Any], file: str, **changes: Any) -> str:
    """Return the command that writes a file with the options of the one that was proven, but for changes."""
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
