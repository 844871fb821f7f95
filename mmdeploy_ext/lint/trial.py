"""A trial export: whether the exporter takes the module, and which operators it does not know."""

import contextlib
import dataclasses
import io
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mmdeploy_ext.core.errors import ExportError, one_line, root_cause
from mmdeploy_ext.exporting.export import OPSETS, default_opset, export_module, patched_libraries
from mmdeploy_ext.lint.nested import copies, copy_of, tensors_in
from mmdeploy_ext.lint.record import Event
from mmdeploy_ext.lint.sites import TORCH, Site, site_at

FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
"""A frame of a Python traceback: file, line, function."""
RANGE = re.compile(r'^(.+\.py)\((\d+)\): (\S+)$', re.M)
"""A frame of the source range of a node that was traced: file, line, function."""
SYMBOLIC_OPSETS = range(7, 21)
"""Opsets that torch has modules of symbolics for."""
LONGEST = 200
"""Characters of an error in a report."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of an exporter at an opset.

    Attributes:
        exporter: 'torchscript' or 'dynamo'.
        opset: opset of the export.
        refused: whether the export failed.
        skipped: whether it was not tried.
        text: the first line of its error and where it arose, or why it was skipped; else ''.
        events: for the operators that it does not know.
    """

    exporter: str
    opset: int
    refused: bool = False
    skipped: bool = False
    text: str = ''
    events: tuple[Event, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return attribute -> value in plain JSON types, without `events`."""
        return {key: value for key, value in vars(self).items() if key != 'events'}


def try_export(
    module: torch.nn.Module, args: Sequence[Any], exporter: str, opset: int | None, ends_process: bool = False
) -> Trial:
    """Export a copy of a module, with the sizes of the example.

    Args:
        module: the module.
        args: its positional arguments.
        exporter: 'torchscript' or 'dynamo'.
        opset: None for the exporter's default; one that the exporter lacks becomes the nearest that it has.
        ends_process: the module does something that can end the process under the dynamo exporter (the rules
            `tensor-data` and `parameter-data`), which is skipped then.

    Returns:
        The result; an export that fails is one that was refused, and no error.
    """
    low, high = OPSETS[exporter]
    opset = min(max(opset or default_opset(module, exporter), low), high)
    if ends_process and exporter == 'dynamo':
        return Trial(exporter, opset, skipped=True, text='tensor.data ends the process here')
    names = [f'input_{index}' for index, _ in enumerate(tensors_in(args))]
    try:
        copied = tuple(copies(list(args)))
        export_module(copy_of(module), copied, exporter=exporter, opset=opset, input_names=names)
    except ExportError as error:
        find = unknown_to_torchscript if exporter == 'torchscript' else unknown_to_dynamo
        cause = error.__cause__
        if cause is None:
            cause = root_cause(error)
        else:
            while cause.__cause__ is not None:
                cause = cause.__cause__
        unknown = find(copy_of(module), tuple(copies(list(args))), opset)
        events = tuple(
            Event('unsupported-operator', site, f'{operator} is unknown to {exporter} at opset {opset}')
            for operator, site in unknown
        )
        lines = [line for line in str(cause).splitlines() if line.strip()]
        text = one_line(lines[0] if lines else type(cause).__name__)[:LONGEST]
        site = _last_site(FRAME.findall(f'{error.__cause__}'))  # the user's line, where the error names one
        if site is not None:
            text = f'{site.text}: {text}'
        return Trial(exporter, opset, refused=True, text=text, events=events)
    return Trial(exporter, opset)


def unknown_to_torchscript(
    module: torch.nn.Module, args: tuple[Any, ...], opset: int
) -> list[tuple[str, Site | None]]:
    """Return the operators of a trace that have no symbolic at an opset, with their lines, each pair once.

    Those of `prim` (such as Python functions) and `onnx` are not looked at.

    `module` is traced with the positional arguments `args`; [] if that fails. An operator is a name such as
    'aten::det', behind which the first opset that has it stands in brackets, if one does. The registry is
    private to torch (2.13); it is empty until the modules of the opsets are imported. A line is None if the
    trace has none for the operator.
    """
    import importlib

    from torch.onnx._internal.torchscript_exporter.registration import registry

    for number in SYMBOLIC_OPSETS:
        importlib.import_module(f'torch.onnx._internal.torchscript_exporter.symbolic_opset{number}')
    with warnings.catch_warnings(), patched_libraries(), torch.no_grad():
        warnings.simplefilter('ignore')
        try:
            traced = torch.jit.trace(module, args, check_trace=False, strict=False)
        except Exception:  # its message is in the text of the trial already
            return []
    unknown = {}
    for node in traced.inlined_graph.nodes():
        kind = node.kind().rstrip('_')
        if kind.startswith(('prim::', 'onnx::')) or registry.is_registered_op(kind, opset):
            continue
        later = [number for number in SYMBOLIC_OPSETS if registry.is_registered_op(kind, number)]
        name = f'{kind} (opset {later[0]} has it)' if later else kind
        unknown.setdefault((name, _last_site(RANGE.findall(node.sourceRange()), inner_first=True)), None)
    return list(unknown)


def unknown_to_dynamo(
    module: torch.nn.Module, args: tuple[Any, ...], opset: int
) -> list[tuple[str, Site | None]]:
    """Return the operators of an exported program that have no translation, with their lines, each pair once.

    `module` is exported with the positional arguments `args`; [] if that fails. An operator is a name such as
    'aten.det.default', never with an opset in brackets; those with side effects, such as printing, are not
    looked at. Translations are those at `opset`. Registry and decomposition are private to torch (2.13). A
    line is None if the program has none for the operator.
    """
    from torch.onnx._internal.exporter import _dispatching, _fx_passes, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            program = torch.export.export(module, args, strict=False)
            program = _fx_passes.decompose_with_registry(program, registry)
        except Exception:  # its message is in the text of the trial already
            return []
    unknown = {}
    for node in program.graph.nodes:
        if node.op == 'call_function' and 'with_effects' not in str(node.target):
            function, _ = _dispatching.dispatch(node, registry)
            if function is None:
                frames = FRAME.findall(node.meta.get('stack_trace') or '')
                unknown.setdefault((str(node.target), _last_site(frames)), None)
    return list(unknown)


def _last_site(frames: list[tuple[str, str, str]], inner_first: bool = False) -> Site | None:
    """Return the innermost of frames (file, line, function) that is not of torch, as a site.

    It is the last one, or the first with `inner_first`.
    """
    outside = [frame for frame in frames if not frame[0].startswith(TORCH + os.sep)]
    if not outside:
        return None
    file, line, function = outside[0 if inner_first else -1]
    return site_at(file, int(line), function)
