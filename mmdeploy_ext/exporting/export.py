"""From a chain of modules to one ONNX file that keeps its spec."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import onnx
import torch

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.exporting.exporter import Call, check_written, run, run_named
from mmdeploy_ext.exporting.ops import deform_conv, window_attention  # noqa: F401  (they register themselves)
from mmdeploy_ext.exporting.ops.forms import ALL
from mmdeploy_ext.graph.passes.contract import apply_spec
from mmdeploy_ext.graph.passes.merge import concatenate
from mmdeploy_ext.graph.passes.simplify import simplify
from mmdeploy_ext.stack import compat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.contract.stages import Stage
    from mmdeploy_ext.families.base import ExportOptions


def export_stages(
    stages: Sequence[Stage], example: Mapping[str, torch.Tensor], spec: GraphSpec, options: ExportOptions
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
        parts.append(run(_call(stage, tensors, letters, multiples, options), ALL))
    model = concatenate(parts, [stage.name for stage in stages], spec.output_names)
    for graph_pass in (item for stage in stages for item in stage.passes):
        model, _ = graph_pass(model)
    if options.simplify:
        model, _ = simplify(model)
    model = apply_spec(model, spec)
    check_written(model, options.opset)
    return model


def _call(
    stage: Stage,
    tensors: Mapping[str, torch.Tensor],
    letters: dict[str, dict[int, str]],
    multiples: Mapping[str, int],
    options: ExportOptions,
) -> Call:
    ends = (*stage.inputs, *stage.outputs)
    if options.dynamic or options.dynamic_batch:
        # Intermediate tensors keep every axis open; the merged graph gets the letters of the spec.
        for name in ends:
            axes = (0, *range(2, tensors[name].dim())) if options.dynamic else (0,)
            letters.setdefault(name, {axis: f'{name}_{axis}' for axis in axes})
    return Call(
        stage.name,
        stage.module,
        tuple(tensors[name] for name in stage.inputs),
        stage.inputs,
        stage.outputs,
        {name: letters[name] for name in ends if letters.get(name)},
        stage.exporter or options.exporter,
        options.opset,
        multiples,
    )


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
    return run_named(module, args, ALL, exporter, opset, input_names, output_names, dynamic)


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
