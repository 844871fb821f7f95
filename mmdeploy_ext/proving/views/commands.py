"""The command that makes sense after a verdict; families say which tools use their files and export them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.families import DETECTOR
from mmdeploy_ext.core.cli import as_typed
from mmdeploy_ext.families.base import FAMILIES, Family
from mmdeploy_ext.runtime.consumers import runner_of
from mmdeploy_ext.runtime.detections import candidates_needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.proving.verdict import Verdict


def next_command(verdict: Verdict) -> str:
    """Return the command that makes sense after this verdict; `mm2onnx` where that was started."""
    return as_typed(_next_script(verdict))


def _next_script(verdict: Verdict) -> str:
    subject = verdict.subject
    known = _model_of(subject) | dict(file=subject.get('file', 'MODEL.onnx'))
    if verdict.passed:
        form = subject.get('form') or Path(list(subject.get('files', ['']))[-1]).stem
        tool = runner_of(subject.get('family', ''), form)
        used_by = getattr(FAMILIES.get(subject.get('family')), 'used_by', Family.used_by)
        command = f'{tool} {{file}} IMAGE_OR_FOLDER' if tool else used_by.get(form) or used_by['']
        place = Path(known['file'])
        given = known | dict(folder=place.parent if place.suffix == '.onnx' else place)
        quoted = {name: shlex.quote(str(value)) for name, value in given.items()}
        return f'python {command.format(**quoted)}'
    if not all(check.passed for check in (*verdict.structure, *verdict.graphs)):
        return f'{export_command(subject, known["file"])}   # export it again'
    failed = [row for case in verdict.cases for row in case.detections if not row.passed]
    needed = [candidates_needed(row.reason) for row in failed]
    if needed and all(needed):
        asked = {name: max(one.get(name, 0) for one in needed) for one in needed for name in one}
        command = export_command(subject, known['file'], **asked)
        return f'{command}   # only the number of candidates cut results off'
    forms = getattr(FAMILIES.get(subject.get('family')), 'forms', ('raw',))
    if subject.get('form') == 'full' and failed and 'raw' in forms:
        raw = f'{known["file"].removesuffix(".onnx")}_raw.onnx'
        command = export_command(subject, raw, form='raw')
        return f'{command}   # is it the network or the post-processing?'
    words = [*known.values(), *_override_words(subject.get('options', {})), '--report', 'work_dirs/report']
    command = shlex.join(['python', 'tools/deployment/verify.py', *words])
    return f'{command}   # figures and pictures of every comparison'


def export_command(subject: Mapping[str, Any], file: str, **changes: Any) -> str:
    """Return the command that writes a file with the options of the one that was proven, but for changes."""
    family, options = FAMILIES.get(subject.get('family')), {**subject.get('options', {}), **changes}
    tool = 'tools/deployment/pytorch2onnx.py' if family is None else family.export_tool
    words = ['python', tool, *_model_of(subject).values(), '--verify', '--output-file', file]
    for option in DETECTOR if family is None else family.options:
        words += option.words(options) if option.name in options else []
    return shlex.join(words + _override_words(options))


def _override_words(options: Mapping[str, Any]) -> list[str]:
    """Return the overrides of the config that a file was exported with."""
    overrides = [f'{key}={value}' for key, value in options.get('cfg_options', {}).items()]
    return ['--cfg-options', *overrides] if overrides else []


def _model_of(subject: Mapping[str, Any]) -> dict[str, str]:
    return {name: subject.get(name, name.upper()) for name in ('config', 'checkpoint')}
