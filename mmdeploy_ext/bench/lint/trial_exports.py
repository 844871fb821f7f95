"""Trial exports: whether an exporter takes a module, and which operators TorchScript's does not know."""

from __future__ import annotations

import dataclasses
import importlib
import re
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from mmdeploy_ext.base.errors import ExportError, one_line
from mmdeploy_ext.bench.lint.observe import RANGE, Event, copies, copy_of, tensors_in
from mmdeploy_ext.bench.lint.sites import site_of_trace
from mmdeploy_ext.exporting.export import default_opset, export_module
from mmdeploy_ext.spec.options import OPSETS

FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
SYMBOLIC_OPSETS = range(7, 21)
LONGEST = 200
"""Characters of an error in a report."""


@dataclasses.dataclass(frozen=True)
class TrialExport:
    """Result of an exporter at an opset; `text` is its error, or why it was skipped."""

    exporter: str
    opset: int
    refused: bool = False
    skipped: bool = False
    text: str = ''

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def try_export(
    module: torch.nn.Module, args: Sequence[Any], exporter: str, opset: int | None, has_data: bool = False
) -> TrialExport:
    """Export a copy of a module with the sizes of the example.

    `opset` is clipped to the exporter's opsets. `has_data`: the module uses `.data`; dynamo of torch 2.13 can
    then end the process and is skipped.
    """
    low, high = OPSETS[exporter]
    opset = min(max(opset or default_opset(module, exporter), low), high)
    if has_data and exporter == 'dynamo':
        return TrialExport(
            exporter, opset, refused=True, skipped=True, text='tensor.data crashes the process'
        )
    names = [f'input_{index}' for index, _ in enumerate(tensors_in(args))]
    try:
        copied = tuple(copies(list(args)))
        export_module(copy_of(module), copied, exporter=exporter, opset=opset, input_names=names)
    except ExportError as error:
        return refused(exporter, opset, error)
    return TrialExport(exporter, opset)


def refused(exporter: str, opset: int | None, error: Exception) -> TrialExport:
    """Trial of an exporter that failed, with the innermost cause and the user's line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()]
    text = one_line(lines[0] if lines else type(cause).__name__)[:LONGEST]
    steps = traceback.extract_tb(cause.__traceback__)
    frames = [(step.filename, str(step.lineno), step.name) for step in steps]
    frames = FRAME.findall(f'{error.__cause__}') or frames
    site = site_of_trace(frames[::-1])
    text = text if site is None else f'{site.text}: {text}'
    return TrialExport(exporter, opset or OPSETS[exporter][0], refused=True, text=text)


def unknown_operators(graph: torch._C.Graph, opset: int) -> list[Event]:
    """Events for operators of a traced graph without a symbolic of the TorchScript exporter.

    The registry is private to torch (2.13), and empty before the modules of the opsets are imported.
    """
    from torch.onnx._internal.torchscript_exporter.registration import registry

    for number in SYMBOLIC_OPSETS:
        importlib.import_module(f'torch.onnx._internal.torchscript_exporter.symbolic_opset{number}')
    events = []
    for node in graph.nodes():
        kind, name = node.kind().rstrip('_'), ''
        if kind == 'prim::PythonOp':
            function = getattr(node.pyobj(), '__self__', None)
            name = '' if hasattr(function, 'symbolic') else f'{node.pyname()}, without symbolic,'
        elif not kind.startswith(('prim::', 'onnx::')) and not registry.is_registered_op(kind, opset):
            later = [number for number in SYMBOLIC_OPSETS if registry.is_registered_op(kind, number)]
            name = f'{kind} (opset {later[0]} has it)' if later else kind
        if name:
            site = site_of_trace(RANGE.findall(node.sourceRange()))
            detail = f'{name} is unknown to torchscript at opset {opset}'
            events.append(Event('unsupported-operator', site, detail))
    return events
