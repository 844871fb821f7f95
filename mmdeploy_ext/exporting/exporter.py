"""The only caller of torch.onnx.export: one module of flat tensors, by either exporter, as it comes out."""

import contextlib
import dataclasses
import functools
import inspect
import io
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import onnx
import torch

from mmdeploy_ext import compat
from mmdeploy_ext.contract.stages import DEFAULT_OPSET, Stage
from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.exporting.code_warnings import tracer_warnings
from mmdeploy_ext.exporting.dynamo import decomposed_where_needed, translations_read_once
from mmdeploy_ext.exporting.ops.backbone_attention import sizes_traced
from mmdeploy_ext.exporting.ops.operator import translations
from mmdeploy_ext.exporting.torch_patches import (
    linspace_of_its_type,
    linspace_of_one_step,
    listed_values,
    with_a_batch,
    without_checkpoints,
    without_empty_writes,
)
from mmdeploy_ext.graph.io.operators import opsets_of
from mmdeploy_ext.graph.passes.interface import check_axes, name_ends
from mmdeploy_ext.graph.passes.simplify import suppress_output

Finish = Callable[[onnx.ModelProto, str, int], onnx.ModelProto]
"""(model, exporter, opset) -> model whose nodes of the domain `mm2onnx` have the form that was chosen;
`ops.forms.finish` is one."""
OPSETS = {'torchscript': (11, 20), 'dynamo': (18, 20)}
"""Exporter -> first and last opset that it really writes in torch 2.13 (measured; dynamo writes 18 if asked
for 11)."""
STACK_TRACE = 'pkg.torch.onnx.stack_trace'
"""Metadata of a node that the dynamo exporter writes: paths and lines of the source files that call it. They
are left out, so that a file holds no source text."""


@dataclasses.dataclass(frozen=True)
class LibraryOperator:
    """An operator that needs a certain opset to export, and may need a patch; its module registers it.

    Attributes:
        title: the operator of PyTorch or of another library, and that of ONNX, for messages.
        opset: the first that has the ONNX operator.
        types: names of classes of modules that use the operator, and so do those derived from them.
        patch: returns a context that is open during every export.
        translations: operator -> function, the dynamo exporter's `custom_translation_table`, if it needs one.
    """

    title: tuple[str, str]
    opset: int
    types: Collection[str]
    patch: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    translations: Mapping[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)


LIBRARY_OPERATORS: list[LibraryOperator] = []
"""Operators whose patches, of those that have one, hold in every export; modules of `ops` and families add
those that they need."""


@contextlib.contextmanager
def patched_libraries() -> Iterator[None]:
    """Inside the block the operators of `LIBRARY_OPERATORS` export, and functions under a checkpoint."""
    with contextlib.ExitStack() as stack, without_checkpoints():
        for operator in LIBRARY_OPERATORS:
            stack.enter_context(operator.patch())
        yield


def operators_of(module: torch.nn.Module) -> list[LibraryOperator]:
    """Return the `LIBRARY_OPERATORS` that a module uses."""
    names = {base.__name__ for part in module.modules() for base in type(part).__mro__}
    return [operator for operator in LIBRARY_OPERATORS if names.intersection(operator.types)]


def check_operators(module: torch.nn.Module, opset: int) -> None:
    """Refuse an opset without an operator that the module needs; the UsageError names both."""
    for operator in operators_of(module):
        if opset < operator.opset:
            feature, name = operator.title
            raise UsageError(
                f'--opset-version {opset}: the model has {feature}, which ONNX has since opset '
                f'{operator.opset} ({name})'
            )


def default_opset(module: torch.nn.Module, exporter: str) -> int:
    """Return the lowest opset that a module and an exporter need, at least `DEFAULT_OPSET`."""
    lowest = OPSETS.get(exporter, (0,))[0]  # an unknown exporter is refused later
    return max([DEFAULT_OPSET, lowest, *(operator.opset for operator in operators_of(module))])


def default_group_norm(module: torch.nn.Module) -> str:
    """Return 'exact', a value of the option `group_norm`, if `module.backbone` normalises by groups; else ''.

    `contract.options.GROUP_NORM` tells what the values do; '' has the effect of 'operator'. A backbone has
    fifty and more group normalisations in a row; for the heads' up to five the operator is enough.
    """
    backbone = getattr(module, 'backbone', None)
    parts = backbone.modules() if isinstance(backbone, torch.nn.Module) else ()
    return 'exact' if any(isinstance(part, torch.nn.GroupNorm) for part in parts) else ''


def check_opset(opset: int, exporter: str, option: str = '') -> None:
    """Refuse an opset that the exporter cannot write, and an unknown exporter, with a UsageError.

    A message about the opset begins with the `option` that asked for it; '' stands for `--opset-version` with
    its value.
    """
    if exporter not in OPSETS:
        raise UsageError(f'--exporter {exporter}: expected one of {", ".join(OPSETS)}')
    low, high = OPSETS[exporter]
    if not low <= opset <= high:
        raise UsageError(
            f'{option or f"--opset-version {opset}"}: the {exporter} exporter writes opsets {low} to {high}'
        )


def run(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
    finish: Finish,
    multiples: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Export one stage by the exporter that it names.

    Args:
        stage: the module, the exporter, not '', and the names of its inputs and outputs; if these are fewer
            than the tensors, the exporter names the others. Call `compat.apply()` before the libraries of the
            module are imported, and `eval()` on it: dynamo writes the dropout of one in training mode.
        args: example tensors, one per input.
        dynamic: input or output name -> dynamic axis -> name of its symbolic dimension. The dynamo exporter
            takes the axes of inputs alone; it finds those of outputs, and most of the names, by itself.
        opset: opset of the file.
        finish: `ops.forms.finish`.
        multiples: input name -> the number of which its height and width are multiples; 1 for names that it
            lacks, and for all with None. Only the dynamo exporter uses it.

    Raises:
        ExportError: the exporter failed, for whatever reason; the message names the stage.
    """
    try:
        is_dynamic = any(dynamic.get(name) for name in stage.inputs)
        sizes = sizes_traced(stage.module) if is_dynamic else contextlib.nullcontext()
        with suppress_output(), tracer_warnings(), patched_libraries(), torch.no_grad(), sizes:
            if stage.exporter == 'dynamo':
                table = translations()
                for library_operator in LIBRARY_OPERATORS:
                    table = {**library_operator.translations, **table}
                model = _export_dynamo(stage, args, dynamic, opset, table, multiples or {})
            else:
                model = _export_torchscript(stage, args, dynamic, opset)
            return finish(model, stage.exporter, opset)
    except Exception as error:
        later_opset = re.search(r'Support for this operator was added in version (\d+)', str(error))
        advice = f': --opset-version {later_opset[1]}' if later_opset else ''
        raise ExportError(
            f'stage {stage.name!r} could not be exported by the {stage.exporter} exporter at opset '
            f'{opset}: {type(error).__name__}: {error}{advice}'
        ) from error


def export_module(
    module: torch.nn.Module,
    args: Sequence[torch.Tensor],
    *,
    exporter: str = 'torchscript',
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    finish: Finish,
) -> onnx.ModelProto:
    """Export a module of flat tensors as it is: no spec, no merge, no clean-up. Any script may call it.

    An input that no node reads is left out by the TorchScript exporter, and kept by dynamo.

    Args:
        module: takes `args` by position, returns a tensor or a tuple of tensors. Call `eval()` on it before:
            the dynamo exporter writes the dropout of a module in training mode.
        args: example tensors.
        exporter: 'torchscript' or 'dynamo'.
        opset: opset of the file; by default 17, or the lowest that the exporter writes if that is higher.
        input_names: names of all inputs, by position; with more the TorchScript exporter fails, and dynamo
            ignores the rest; input_0, input_1, ... by default.
        output_names: names of the first outputs; any other is output_<place>, its place among all, from 0. No
            two inputs or outputs may have one name.
        dynamic: input or output name -> dynamic axis -> name of its symbolic dimension, with both exporters;
            other axes of inputs are fixed; None: all sizes are fixed.
        finish: `ops.forms.finish`, with which `export.export_module` is this function.

    Raises:
        UsageError: there is no such exporter or opset, the graph has no such name or axis, or two inputs or
            outputs would have one name.
        ExportError: the exporter failed, or wrote another opset than the requested one. More names than
            outputs are one of the two errors.
    """
    compat.apply()
    if opset is None:
        opset = max(DEFAULT_OPSET, OPSETS.get(exporter, (0,))[0])
    check_opset(opset, exporter)
    names = tuple(input_names or (f'input_{index}' for index in range(len(args))))
    dynamic = {name: dict(axes) for name, axes in (dynamic or {}).items()}
    ends = [*names, *output_names]
    if repeated := sorted({name for name in ends if ends.count(name) > 1}):  # TorchScript renames the input
        raise UsageError(f'{", ".join(repeated)} would be the name of two inputs or outputs')
    stage = Stage(type(module).__name__, module, names, tuple(output_names), exporter)
    check_axes(dict(zip(names, args, strict=False)), dynamic)
    # axes of outputs that the caller did not name are set by `name_ends`, by position
    named_axes = {name: axes for name, axes in dynamic.items() if name in {*stage.inputs, *stage.outputs}}
    model = run(stage, tuple(args), named_axes, opset, finish)
    check_written(model, opset)
    return name_ends(model, stage.outputs, dynamic)


def check_written(model: onnx.ModelProto, opset: int) -> None:
    """Refuse a model of another opset than the requested one; the ExportError names both."""
    written_opset = opsets_of(model).get('')
    if written_opset != opset:
        raise ExportError(
            f'opset {opset} was asked for, the exporter wrote {written_opset}; '
            f'choose an opset that it writes, or --exporter torchscript'
        )


def _export_torchscript(
    stage: Stage, args: tuple[torch.Tensor, ...], dynamic: Mapping[str, Mapping[int, str]], opset: int
) -> onnx.ModelProto:
    from torch.onnx._internal.torchscript_exporter import utils  # which takes a fifth of a second

    stream = io.BytesIO()
    # where it fails, the exporter prints the graph: a million letters for a detector
    without_graph = mock.patch.object(torch._C, '_jit_onnx_log', lambda *_: None)
    split_lists = functools.partial(_split_where_needed, utils._split_tensor_list_constants)
    split = mock.patch.object(utils, '_split_tensor_list_constants', split_lists)
    # an index that is empty at the traced size may have elements at another one, an axis of many rows one row
    has_dynamic_sizes = any(axis > 0 for name in stage.inputs for axis in dynamic.get(name, {}))
    steps = linspace_of_one_step() if has_dynamic_sizes else linspace_of_its_type()
    writes = contextlib.nullcontext() if has_dynamic_sizes else without_empty_writes()
    with steps, writes, with_a_batch(), without_graph, split, listed_values():
        torch.onnx.export(
            stage.module,
            args,
            stream,
            dynamo=False,
            opset_version=opset,
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            dynamic_axes=dynamic,
            do_constant_folding=True,
            # inlining the traced body of an autograd.Function breaks mmcv's DCN v2 (IndexError in torch 2.13)
            autograd_inlining=False,
        )
    return onnx.load_from_string(stream.getvalue())


def _split_where_needed(split: Callable[[Any, Any], None], graph: Any, _: Any) -> None:
    """Call `split`, which makes nodes of constants that are lists of tensors, if the graph has such lists.

    `split` looks at every node of a block, which takes a thirtieth of the seconds of an export: its block has
    these constants alone.
    """
    lists = []
    for node in graph.findAllNodes('prim::Constant', recurse=True):
        kind = node.output().type()
        if kind.kind() == 'ListType' and kind.getElementType().kind() in ('TensorType', 'OptionalType'):
            lists.append(node)
    if lists:
        split(graph, types.SimpleNamespace(nodes=lambda: lists))


def _export_dynamo(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
    table: dict[Any, Callable[..., Any]],
    multiples: Mapping[str, int],
) -> onnx.ModelProto:
    shapes: tuple[Any, ...] = ()
    for name in stage.inputs:
        axes: dict[int, Any] = {}
        for axis, letter in dynamic.get(name, {}).items():
            axes[axis], multiple = torch.export.Dim.DYNAMIC, multiples.get(name, 1)
            if axis >= 2 and multiple > 1:  # maps of half the height and width fit when they are doubled
                axes[axis] = multiple * torch.export.Dim(letter, min=1)
        shapes = (*shapes, axes)
    parameters = inspect.signature(stage.module.forward).parameters.values()
    named_count = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    if named_count < min(len(parameters), len(shapes)):
        shapes = (*shapes[:named_count], shapes[named_count:])  # torch.export takes *tensors as one argument
    with decomposed_where_needed(table), translations_read_once():
        program = torch.onnx.export(
            stage.module,
            args,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            dynamic_shapes=shapes if dynamic else None,
            custom_translation_table=table,
            verbose=False,
        )
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop(STACK_TRACE, None)
    return program.model_proto
