"""Checks that a user's backbone or neck runs at other sizes than the traced size."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.cli import one_line
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.source_code import file_of, files_of_users_classes, is_in_package
from mmdeploy_ext.bench.lint.check import check
from mmdeploy_ext.bench.lint.observe import tensors_in

PARTS = ('backbone', 'neck')
"""Attributes of a detector that users write themselves."""
SIZES = ((128, 160), (192, 288))
"""Height and width of the traced picture and of the run, pixels; enlarged if the detector needs it."""
RTOL = 1e-3
"""Tolerance relative to a map's largest value; a wrong size changes maps by far more."""
RULES = ('size-to-python', 'size-in-branch', 'size-in-loop')
LISTED = 3
"""Lines of code that a refusal names."""


def check_dynamic_parts(model: torch.nn.Module, multiple: int = 1, smallest: int = 1) -> None:
    """Raise UsageError if a backbone or neck of the user keeps the traced sizes or cannot be traced.

    Each part with a class of the user is traced at one size and run at a larger one, within `RTOL` of the
    module. The message names class, file and lines. `multiple` and `smallest` are of the input's sides,
    pixels.
    """
    parts = [part for part in (getattr(model, name, None) for name in PARTS) if part is not None]
    if not any(map(files_of_users_classes, parts)):
        return
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    sides = [[math.ceil(max(side, smallest) / multiple) * multiple for side in size] for size in SIZES]
    sides[1] = [max(side, traced + multiple) for traced, side in zip(*sides, strict=True)]
    inputs: list[Any] = [torch.randn((1, 3, *size), generator=draw).to(device) for size in sides]
    for part in parts:
        with torch.no_grad():
            outputs = [part(value) for value in inputs]
        if files_of_users_classes(part) and (failure := _failure(part, inputs, outputs[1])):
            with torch.no_grad():
                is_random = bool(_difference(part(inputs[1]), outputs[1]))
            refusal = _refusal_of_random if is_random else _refusal_of_size
            raise UsageError(refusal(part, inputs, sides, failure))
        inputs = outputs


def _failure(part: torch.nn.Module, inputs: Sequence[Any], expected: Any) -> str:
    """Error of a part that was traced at the first inputs, at the second inputs; '' if there is none."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # the tracer's own: the comparison says what matters
        try:
            traced = torch.jit.trace(part, (inputs[0],), check_trace=False, strict=False)
        except Exception as error:  # sizes are tensors then, which code may not take
            raise UsageError(_untraceable(part, error)) from error
        try:
            outputs = traced(inputs[1])
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return f'fails: {lines[-1].strip()}'
    return _difference(outputs, expected)


def _difference(outputs: Any, expected: Any) -> str:
    maps, references = list(tensors_in(outputs)), list(tensors_in(expected))
    if len(maps) != len(references):
        return f'returns {len(maps)} maps, PyTorch {len(references)}'
    for output, reference in zip(maps, references, strict=True):
        if output.shape != reference.shape:
            return f'returns maps of {tuple(output.shape)}, PyTorch of {tuple(reference.shape)}'
        error = float((output - reference).abs().max() / reference.abs().max().clamp(min=1e-12))
        if not error <= RTOL:
            return f'is {error:.2g} of the largest value off'
    return ''


def _untraceable(part: torch.nn.Module, error: Exception) -> str:
    """Message for a part that fails while it is traced: the user's innermost line."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step for step in steps if not is_in_package(Path(step.filename))]
    place = f'{lines[-1].filename}:{lines[-1].lineno} `{lines[-1].line}`' if lines else str(part)
    kind, reason = type(part), f'{type(error).__name__}: {one_line(error)}'
    return (
        f'--dynamic-export: {kind.__name__} ({file_of(kind)}) cannot be traced, where sizes are '
        f'tensors: {place}: {reason}; export a fixed --shape, change the line, or use --exporter dynamo'
    )


def _lines(part: torch.nn.Module, inputs: Sequence[Any], rules: Sequence[str]) -> str:
    """Return the lines that `lint` finds by these rules, the user's first, or ''."""
    report = check(
        part,
        (inputs[0],),
        other_inputs=(inputs[1],),
        exporters=('torchscript',),
        try_exports=False,
        name=type(part).__name__,
    )
    findings = [finding for finding in report if finding.rule in rules and finding.site is not None]
    sites = sorted((finding.site for finding in findings), key=lambda site: bool(site.library))
    lines = list(dict.fromkeys(f'{site.file}:{site.line} `{site.code}`' for site in sites))
    rest = f' and {len(lines) - LISTED} more' if len(lines) > LISTED else ''
    return f'{", ".join(lines[:LISTED])}{rest}'


def _refusal_of_random(
    part: torch.nn.Module, inputs: Sequence[Any], sides: Sequence[Sequence[int]], failure: str
) -> str:
    lines = _lines(part, inputs, ['random'])
    return (
        f'{type(part).__name__} ({file_of(type(part))}) returns different maps when it runs twice on one '
        f'image: it draws random numbers{f" in {lines}" if lines else ""}; switch dropout off at test '
        'time (F.dropout(x, training=self.training)), or make the noise an input'
    )


def _refusal_of_size(
    part: torch.nn.Module, inputs: Sequence[Any], sides: Sequence[Sequence[int]], failure: str
) -> str:
    """Message for a part that keeps sizes: the failure and the lines that depend on sizes.

    `inputs` and `sides` (height, width) are of the trace and of the run.
    """
    lines = _lines(part, inputs, RULES)
    decides = f'; it decides by sizes in {lines}' if lines else ''
    (height, width), (other_height, other_width) = sides
    return (
        f'--dynamic-export: {type(part).__name__} ({file_of(type(part))}), traced at {height}x{width}, '
        f'{failure} at {other_height}x{other_width}{decides}; export a fixed --shape, or change these lines '
        f'(mm2onnx lint shows all)'
    )
