"""From a chain of modules to one ONNX file whose inputs and outputs are those of its `GraphSpec`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.exporting import exporter
from mmdeploy_ext.exporting.ops import deform_conv, replaced_modules  # noqa: F401  (they register themselves)
from mmdeploy_ext.exporting.ops.forms import finish
from mmdeploy_ext.exporting.ops.operator import current_form, operators_as
from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.graph.passes.global_means import split_global_means
from mmdeploy_ext.graph.passes.interface import apply_spec
from mmdeploy_ext.graph.passes.merge import concatenate
from mmdeploy_ext.graph.passes.norms import replace_group_norm
from mmdeploy_ext.graph.passes.simplify import simplify


def export_stages(
    stages: Sequence[Stage], example: Mapping[str, torch.Tensor], spec: GraphSpec, options: Options
) -> onnx.ModelProto:
    """Export each stage and merge them into one graph, whose inputs and outputs are the spec's.

    Args:
        stages: the chain; the outputs of a stage are inputs of later ones by name.
        example: graph input name -> tensor, of the traced shapes, on the device of the modules.
        spec: the contract of the merged graph.
        options: opset, exporter, dynamic axes, group normalisation, precision, simplification; the exporter
            and the operator form of a stage come before those of the options and of `operators_as`. With the
            precision 'fp32' means of large maps are summed in two steps; float16 is not written here.

    Raises:
        ExportError: the exporter failed, and the message names the stage; or the merged graph has another
            opset than the one asked for, or other inputs or outputs than the spec. What a module raises when
            it is run before its export is raised as it is.
    """
    tensors = dict(example)
    # tensor name -> dynamic axis -> name of its symbolic dimension
    letters = {tensor.name: tensor.dynamic_axes for tensor in spec.inputs}
    multiples = {tensor.name: tensor.multiple for tensor in spec.inputs}
    has_open_axes = options.get('dynamic', False) or options.get('dynamic_batch', False)
    parts = []
    for stage in stages:
        stage.module.eval()  # torch.onnx.export sets the mode that it found, in all parts
        args = tuple(tensors[name] for name in stage.inputs)
        if has_open_axes or stage is not stages[-1]:  # of fixed outputs that no stage reads nothing is needed
            with torch.no_grad():
                outputs = stage.module(*args)
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            tensors.update(zip(stage.outputs, outputs, strict=True))
        ends = {name: tensors.get(name) for name in (*stage.inputs, *stage.outputs)}
        stage = dataclasses.replace(stage, exporter=stage.exporter or options.exporter)
        dynamic = _dynamic_axes(ends, letters, options)
        if not options.get('dynamic', False):
            letters.update({name: {**letters.get(name, {}), 1: f'{name}_rows'} for name in stage.varying})
        with operators_as(stage.operators or current_form()):
            parts.append(exporter.run(stage, args, dynamic, options.opset, finish, multiples))
        if stage.exporter == 'dynamo':  # it finds that some axes have one size: those are no longer open
            for value in parts[-1].graph.output:
                sizes = value.type.tensor_type.shape.dim
                open_axes = letters.get(value.name, {}).items()
                letters[value.name] = {axis: letter for axis, letter in open_axes if sizes[axis].dim_param}
    model = concatenate(parts, [stage.name for stage in stages], spec.output_names)
    for stage in stages:
        for graph_pass in stage.passes:
            model, _ = graph_pass(model)
    model = _with_exact_sums(model, options)
    if options.simplify:
        model = simplify(model)
    model = apply_spec(model, spec)
    exporter.check_written(model, options.opset)
    return model


def _with_exact_sums(model: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    """Return the model with sums of large maps in two steps; float16 files keep what engines have."""
    if options.get('group_norm') == 'exact':
        model, _ = replace_group_norm(model)
    if options.get('precision') == 'fp32':
        model, _ = split_global_means(model)
    return model


def _dynamic_axes(
    ends: Mapping[str, torch.Tensor | None], letters: dict[str, dict[int, str]], options: Options
) -> dict[str, dict[int, str]]:
    """Return the dynamic axes of the inputs and outputs of a stage, and add new ones to `letters`.

    Tensors may be None if the options open no axes.
    """
    all_axes = options.get('dynamic', False)
    if all_axes or options.get('dynamic_batch', False):
        # Intermediate tensors keep every axis open; the merged graph gets the letters of the spec.
        for name, tensor in ends.items():
            axes = (0, *range(2, tensor.dim())) if all_axes else (0,)
            letters.setdefault(name, {axis: f'{name}_{axis}' for axis in axes})
    return {name: letters[name] for name in ends if letters.get(name)}


export_module = functools.partial(exporter.export_module, finish=finish)
"""`exporter.export_module` with the registered operators."""


def save(model: onnx.ModelProto, path: str | Path, metadata: Metadata | None = None) -> None:
    """Add `metadata` to the properties of a model, in place, check it, and write it to a file, `path`.

    Its folder is made if it is missing. An older file is replaced at once, or stays if something fails. A
    model in libspconv's dialect is no valid ONNX and is not checked. With None no metadata are added.

    ExportError: onnx.checker refuses the model; UsageError: the file is one that this run reads;
    Mm2OnnxError: it cannot be written.
    """
    if metadata is not None:
        props = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**props, **metadata.to_props()})
    try:
        if not is_sparse(model):
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f'{path}: onnx.checker refuses the exported model: {error}') from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
