"""The only caller of torch.onnx.export: one module of flat tensors, by either exporter, as it comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import torch

from mmdeploy_ext.contract.stages import DEFAULT_OPSET
from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.graph.passes.ends import check_axes, name_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

OPSETS = {'torchscript': (11, 20), 'dynamo': (18, 20)}
"""Opsets that each exporter of torch 2.13 really writes (measured; dynamo answers 11 with 18)."""


@dataclasses.dataclass(frozen=True)
class LibraryOperator:
    """An operator of a library that exports only while the library is patched; its module registers it.

    Attributes:
        title: what a model has that uses it, and the ONNX operator, for messages.
        patch: what is open during every export.
        opset: the first that has the operator.
        inside: whether a module uses it.
    """

    title: tuple[str, str]
    patch: Callable[[], AbstractContextManager[None]]
    opset: int
    inside: Callable[[torch.nn.Module], bool]


LIBRARY_OPERATORS: list[LibraryOperator] = []


@contextlib.contextmanager
def patched_libraries() -> Iterator[None]:
    """Inside the block the operators of `LIBRARY_OPERATORS` export."""
    with contextlib.ExitStack() as stack:
        for operator in LIBRARY_OPERATORS:
            stack.enter_context(operator.patch())
        yield


def operators_of(module: torch.nn.Module) -> list[LibraryOperator]:
    """Return those of `LIBRARY_OPERATORS` that a module uses."""
    return [operator for operator in LIBRARY_OPERATORS if operator.inside(module)]


def check_operators(module: torch.nn.Module, opset: int) -> None:
    """Refuse an opset without an operator that the module needs.

    Raises:
        UsageError: names the operator and its first opset.
    """
    for operator in operators_of(module):
        if opset < operator.opset:
            what, name = operator.title
            raise UsageError(
                f'--opset-version {opset}: the model has {what}, which ONNX has since opset '
                f'{operator.opset} ({name})'
            )


def default_opset(module: torch.nn.Module, exporter: str) -> int:
    """Return the lowest opset that a module and an exporter need, at least `DEFAULT_OPSET`."""
    least = OPSETS.get(exporter, (0,))[0]  # an unknown exporter is refused later
    return max([DEFAULT_OPSET, least, *(operator.opset for operator in operators_of(module))])


def check_opset(opset: int, exporter: str, said: str = '') -> None:
    """Refuse an opset that the exporter cannot write.

    Args:
        opset: wanted.
        exporter: of `OPSETS`.
        said: the option as it was given, for the message.

    Raises:
        UsageError: the message gives the range.
    """
    if exporter not in OPSETS:
        raise UsageError(f'--exporter {exporter}: expected one of {", ".join(OPSETS)}')
    low, high = OPSETS[exporter]
    if not low <= opset <= high:
        said = said or f'--opset-version {opset}'
        raise UsageError(f'{said}: the {exporter} exporter writes opsets {low} to {high}')


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an exporter.

    Attributes:
        name: of what is exported, for messages.
        module: takes `args` by position.
        args: example tensors.
        inputs, outputs: names; where there are fewer outputs than tensors, the exporter names the others.
        dynamic: input or output name -> axis -> letter.
        exporter: of `OPSETS`.
        opset: of the file.
        multiples: input name -> what its height and width are multiples of, where that is not 1.
    """

    name: str
    module: torch.nn.Module
    args: tuple[torch.Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    exporter: str
    opset: int
    multiples: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Operators:
    """What the operators of this project add to a call.

    Attributes:
        translations: gives the `custom_translation_table` of the dynamo exporter.
        finish: (model, exporter, opset) -> model: gives their nodes the form that was chosen.
    """

    translations: Callable[[], dict[Any, Callable[..., Any]]]
    finish: Callable[[onnx.ModelProto, str, int], onnx.ModelProto]


def run(call: Call, operators: Operators) -> onnx.ModelProto:
    """Export.

    Raises:
        ExportError: the exporter failed, or wrote another opset than the one asked for.
    """
    try:
        with _quiet(), patched_libraries(), torch.no_grad():
            if call.exporter == 'dynamo':
                model = _export_dynamo(call, operators.translations())
            else:
                model = _export_torchscript(call)
            model = operators.finish(model, call.exporter, call.opset)
    except Exception as error:
        raise ExportError(
            f'stage {call.name!r} could not be exported by the {call.exporter} exporter at opset '
            f'{call.opset}: {type(error).__name__}: {error}'
        ) from error
    return model


def run_named(
    module: torch.nn.Module,
    args: Sequence[torch.Tensor],
    operators: Operators,
    exporter: str,
    opset: int | None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """Export a module and give the ends of its graph the names that the caller has for them.

    `export.export_module` says what the arguments are and what is raised.
    """
    chosen = max(DEFAULT_OPSET, OPSETS.get(exporter, (0,))[0]) if opset is None else opset
    check_opset(chosen, exporter)
    names = tuple(input_names or (f'input_{index}' for index in range(len(args))))
    dynamic = {name: dict(axes) for name, axes in (dynamic or {}).items()}
    check_axes(dict(zip(names, args, strict=False)), dynamic)
    known = {name: axes for name, axes in dynamic.items() if name in {*names, *output_names}}
    ends = names, tuple(output_names)
    call = Call(type(module).__name__, module, tuple(args), *ends, known, exporter, chosen)
    model = run(call, operators)
    check_written(model, chosen)
    return name_ends(model, call.outputs, dynamic)


def check_written(model: onnx.ModelProto, asked: int) -> None:
    """Refuse a model of another opset than the one asked for.

    Raises:
        ExportError: names both.
    """
    written = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    if written.get('ai.onnx') != asked:
        raise ExportError(
            f'opset {asked} was asked for, the exporter wrote {written.get("ai.onnx")}; '
            f'choose an opset that it writes, or --exporter torchscript'
        )


def _export_torchscript(call: Call) -> onnx.ModelProto:
    stream = io.BytesIO()
    torch.onnx.export(
        call.module,
        call.args,
        stream,
        dynamo=False,
        opset_version=call.opset,
        input_names=list(call.inputs),
        output_names=list(call.outputs),
        dynamic_axes=call.dynamic,
        do_constant_folding=True,
        # inlining the traced body of an autograd.Function breaks mmcv's DCN v2 (IndexError in torch 2.13)
        autograd_inlining=False,
    )
    return onnx.load_from_string(stream.getvalue())


def _export_dynamo(call: Call, translations: dict[Any, Callable[..., Any]]) -> onnx.ModelProto:
    shapes: tuple[Any, ...] = tuple(
        {
            axis: _dimension(axis, letter, call.multiples.get(name, 1))
            for axis, letter in call.dynamic.get(name, {}).items()
        }
        for name in call.inputs
    )
    if any(
        parameter.kind is parameter.VAR_POSITIONAL
        for parameter in inspect.signature(call.module.forward).parameters.values()
    ):
        shapes = (shapes,)  # torch.export knows *tensors as one argument
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            call.module,
            call.args,
            dynamo=True,
            opset_version=call.opset,
            external_data=False,
            input_names=list(call.inputs),
            output_names=list(call.outputs),
            dynamic_shapes=shapes if call.dynamic else None,
            custom_translation_table=translations,
            verbose=False,
        )
    return program.model_proto


def _dimension(axis: int, letter: str, multiple: int) -> Any:
    """Return a dynamic axis; that height and width are multiples tells that maps halved and doubled fit."""
    if axis < 2 or multiple == 1:
        return torch.export.Dim.DYNAMIC
    return multiple * torch.export.Dim(letter, min=1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings off the screen; the ladder finds what they warn of."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ('torch.onnx', 'onnxscript'))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
