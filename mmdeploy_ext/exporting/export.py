"""From a chain of modules to one ONNX file that keeps its spec; the only caller of torch.onnx.export."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import torch

from mmdeploy_ext.contract.stages import DEFAULT_OPSET, Stage
from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.exporting.ops.deform_conv import standard_deform_conv
from mmdeploy_ext.exporting.ops.exporters import translations
from mmdeploy_ext.exporting.ops.forms import finish
from mmdeploy_ext.graph.passes.contract import apply_spec
from mmdeploy_ext.graph.passes.ends import check_axes, name_ends
from mmdeploy_ext.graph.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.graph.passes.merge import concatenate
from mmdeploy_ext.graph.passes.simplify import simplify
from mmdeploy_ext.stack import compat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import GraphSpec

OPSETS = {'torchscript': (11, 20), 'dynamo': (18, 20)}
"""Opsets that each exporter of torch 2.13 really writes (measured; dynamo answers 11 with 18)."""


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


def export_stages(
    stages: Sequence[Stage], example: Mapping[str, torch.Tensor], spec: GraphSpec, options: Options
) -> onnx.ModelProto:
    """Export each stage and merge them into one graph.

    Args:
        stages: the chain; the outputs of a stage are inputs of later ones by name.
        example: graph input name -> tensor, of the traced shapes.
        spec: the contract of the merged graph.
        options: opset, exporter, dynamic axes, simplification.

    Returns:
        A model whose inputs and outputs are the spec's.

    Raises:
        ExportError: the exporter failed, or wrote another opset than the one asked for.
    """
    tensors = dict(example)
    letters = {tensor.name: tensor.dynamic_axes for tensor in spec.inputs}
    multiples = {tensor.name: tensor.multiple for tensor in spec.inputs}
    parts = []
    for stage in stages:
        args = tuple(tensors[name] for name in stage.inputs)
        with torch.no_grad():
            outputs = stage.module(*args)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        tensors.update(zip(stage.outputs, outputs, strict=True))
        parts.append(_export_stage(stage, args, outputs, letters, options, multiples))
    model = concatenate(parts, [stage.name for stage in stages], spec.output_names)
    if options.get('grid_sample') == 'gather':
        model, _ = replace_grid_sample(model)
    if options.simplify:
        model, _ = simplify(model)
    model = apply_spec(model, spec)
    _check_opset_written(model, options.opset)
    return model


def _export_stage(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    outputs: Sequence[torch.Tensor],
    letters: dict[str, dict[int, str]],
    options: Options,
    multiples: Mapping[str, int],
) -> onnx.ModelProto:
    exporter = stage.exporter or options.exporter
    every = options.get('dynamic', False)
    if every or options.get('dynamic_batch', False):
        # Intermediate tensors keep every axis open; the merged graph gets the letters of the spec.
        for name, tensor in zip((*stage.inputs, *stage.outputs), (*args, *outputs), strict=True):
            axes = (0, *range(2, tensor.dim())) if every else (0,)
            letters.setdefault(name, {axis: f'{name}_{axis}' for axis in axes})
    dynamic = {name: letters[name] for name in (*stage.inputs, *stage.outputs) if letters.get(name)}
    return _run_exporter(stage, args, dynamic, exporter, options.opset, multiples)


def export_module(
    module: torch.nn.Module,
    args: Sequence[torch.Tensor],
    *,
    exporter: str = 'torchscript',
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """Export a module of flat tensors as it is: no spec, no merge, no clean-up. Any script may call it.

    Args:
        module: takes `args` by position, returns a tensor or a tuple of tensors.
        args: example tensors.
        exporter: 'torchscript' or 'dynamo'.
        opset: of the file; by default 17, or the lowest that the exporter writes.
        input_names: by default input_0, input_1, ...
        output_names: of as many outputs as shall be named; the others are output_0, output_1, ... by place.
        dynamic: input or output name -> axis -> letter, with both exporters; other axes of inputs are fixed.

    Raises:
        UsageError: an exporter or opset that there is not, or a name or axis that the graph has not.
        ExportError: the exporter failed, or wrote another opset than the one asked for.
    """
    compat.apply()
    chosen = max(DEFAULT_OPSET, OPSETS.get(exporter, (0,))[0]) if opset is None else opset
    check_opset(chosen, exporter)
    names = tuple(input_names or (f'input_{index}' for index in range(len(args))))
    dynamic = {name: dict(axes) for name, axes in (dynamic or {}).items()}
    stage = Stage(type(module).__name__, module, names, tuple(output_names), exporter)
    check_axes(dict(zip(names, args, strict=False)), dynamic)
    known = {name: axes for name, axes in dynamic.items() if name in {*stage.inputs, *stage.outputs}}
    model = _run_exporter(stage, tuple(args), known, exporter, chosen)
    _check_opset_written(model, chosen)
    return name_ends(model, stage.outputs, dynamic)


def _run_exporter(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    dynamic: dict[str, dict[int, str]],
    exporter: str,
    opset: int,
    multiples: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    try:
        with _quiet(), standard_deform_conv(), torch.no_grad():
            if exporter == 'dynamo':
                model = _export_dynamo(stage, args, dynamic, opset, multiples or {})
            else:
                model = _export_torchscript(stage, args, dynamic, opset)
            return finish(model, exporter, opset)
    except Exception as error:
        raise ExportError(
            f'stage {stage.name!r} could not be exported by the {exporter} exporter at opset '
            f'{opset}: {type(error).__name__}: {error}'
        ) from error


def _export_torchscript(
    stage: Stage, args: tuple[torch.Tensor, ...], dynamic: dict[str, dict[int, str]], opset: int
) -> onnx.ModelProto:
    stream = io.BytesIO()
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


def _export_dynamo(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    dynamic: dict[str, dict[int, str]],
    opset: int,
    multiples: Mapping[str, int],
) -> onnx.ModelProto:
    shapes: tuple[Any, ...] = tuple(
        {
            axis: _dimension(axis, letter, multiples.get(name, 1))
            for axis, letter in dynamic.get(name, {}).items()
        }
        for name in stage.inputs
    )
    if any(
        parameter.kind is parameter.VAR_POSITIONAL
        for parameter in inspect.signature(stage.module.forward).parameters.values()
    ):
        shapes = (shapes,)  # torch.export knows *tensors as one argument
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            stage.module,
            args,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            dynamic_shapes=shapes if dynamic else None,
            custom_translation_table=translations(),
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


def _check_opset_written(model: onnx.ModelProto, asked: int) -> None:
    written = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    if written.get('ai.onnx') != asked:
        raise ExportError(
            f'opset {asked} was asked for, the exporter wrote {written.get("ai.onnx")}; '
            f'choose an opset that it writes, or --exporter torchscript'
        )


def save(model: onnx.ModelProto, path: str | Path, metadata: Metadata | None = None) -> None:
    """Check the model and write it, whole or not at all.

    Raises:
        ExportError: onnx.checker refuses the model.
    """
    if metadata is not None:
        kept = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**kept, **metadata.to_props()})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f'{path}: onnx.checker refuses the exported model: {error}') from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide about an exported file."""
    import importlib.metadata

    import mmdeploy_ext

    found: dict[str, Any] = {'mm2onnx': mmdeploy_ext.__version__}
    for package in ('torch', 'mmcv-full', 'mmdet', 'mmdet3d', 'onnx', 'onnxruntime', 'onnxslim'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
