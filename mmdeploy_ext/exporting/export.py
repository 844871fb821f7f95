"""Export a chain of modules to one ONNX file with the inputs and outputs of its `GraphSpec`."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import functools
import inspect
import io
import itertools
import re
import sys
import types
import warnings
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import torch
from torch.export import ExportedProgram

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.errors import ExportError, ModelFileError, OpsetError, UsageError, root_cause
from mmdeploy_ext.base.source_code import copied_file, is_users_file, package_of
from mmdeploy_ext.exporting.operator_nodes import finish
from mmdeploy_ext.exporting.torch_patches import (
    linspace_of_its_type,
    linspace_of_one_step,
    listed_values,
    products_with_flags,
    with_a_batch,
    without_checkpoints,
    without_empty_writes,
)
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.index import all_nodes, opsets_of, refill
from mmdeploy_ext.graphs.io.types import LARGEST_SHAPE
from mmdeploy_ext.graphs.passes.constants import compute_constants, split_global_means, zero_denormals
from mmdeploy_ext.graphs.passes.merge import concatenate
from mmdeploy_ext.graphs.passes.norms import replace_group_norm
from mmdeploy_ext.graphs.passes.over_images import over_images
from mmdeploy_ext.graphs.passes.rename import apply_spec, check_axes, name_ends
from mmdeploy_ext.graphs.passes.simplify import simplify
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.options import DEFAULT_OPSET, OPSETS, Options, check_opset
from mmdeploy_ext.spec.tensors import GraphSpec, Stage
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.operators import deform_conv, mmcv_functions  # noqa: F401 - they register themselves
from mmdeploy_ext.upstream.operators.attention import sizes_traced
from mmdeploy_ext.upstream.operators.operator import (
    LIBRARY_OPERATORS,
    current_form,
    operators_as,
    operators_of,
    translations,
    with_places,
)

# Faster dynamo exports: no needless decompositions, and translations read once.


aten = torch.ops.aten
SAME: dict[Any, tuple[Any, Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    aten.to.dtype: (aten._to_copy.default, lambda x, dtype, *_: ((x,), dict(dtype=dtype))),
    aten.__and__.Tensor: (aten.bitwise_and.Tensor, lambda x, y: ((x, y), {})),
    aten.__or__.Tensor: (aten.bitwise_or.Tensor, lambda x, y: ((x, y), {})),
    aten.rsub.Scalar: (
        aten.sub.Tensor,
        lambda x, y, alpha=None: ((y, x), {} if alpha is None else dict(alpha=alpha)),
    ),
}
"""Untranslated operator -> operator of its decomposition, and a function that maps the arguments."""
REMOVED = frozenset({aten._assert_tensor_metadata.default, aten._assert_scalar.default})
"""Operators that the exporter removes."""

_translations: dict[tuple[int, ...], Any] = {}


@contextlib.contextmanager
def translations_read_once() -> Iterator[None]:
    """Read the exporter's translations once per opset and process."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = ONNXRegistry.from_torchlib

    def from_torchlib(cls: type[ONNXRegistry], **opset: int) -> ONNXRegistry:
        key = (*opset.values(),)
        if key not in _translations:
            _translations[key] = read(**opset)
        registry = copy.copy(_translations[key])
        registry.functions = {target: [*functions] for target, functions in registry.functions.items()}
        return registry

    with patched(ONNXRegistry, from_torchlib=classmethod(from_torchlib)):
        yield


@contextlib.contextmanager
def decomposed_where_needed(translated: Container[Any]) -> Iterator[None]:
    """Skip `ExportedProgram.run_decompositions` for a program that needs none."""
    from onnxscript.function_libs.torch_lib.registration import default_registry

    def is_translated(target: Any) -> bool:
        if not isinstance(target, torch._ops.OpOverload):
            return not isinstance(target, torch._ops.OperatorBase)  # of sizes, not of tensors
        name = f'{target._schema.name}.{target._overloadname}'.removesuffix('.default')
        return name in default_registry or target in translated or target in REMOVED

    decompose = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, *args: Any, **kwargs: Any) -> ExportedProgram:
        if make_functional(program.graph_module, is_translated):
            return program
        return decompose(program, *args, **kwargs)

    with patched(ExportedProgram, run_decompositions=run):
        yield


def make_functional(module: torch.fx.GraphModule, is_translated: Callable[[Any], bool]) -> bool:
    """Make a graph of torch.export functional by `SAME` and out-of-place operators.

    Returns whether the graph is now functional and all calls are translated; if not, it is unchanged.
    """
    calls = [node for node in module.graph.nodes if node.op == 'call_function']
    in_place = [
        node
        for node in calls
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    ]
    targets = {node: SAME.get(node.target, (node.target,))[0] for node in calls}
    targets |= {node: _functional(node.target) for node in in_place}
    if (
        None in targets.values()
        or not all(map(is_translated, targets.values()))
        or not all(_has_no_view(node.args[0]) and _keeps_type(node, targets[node]) for node in in_place)
        or any(node.kwargs for node in calls if node.target in SAME)
    ):
        return False
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    for node, target in targets.items():
        if node.target in SAME:
            node.args, node.kwargs = SAME[node.target][1](*node.args)
        node.target = target
    for node in in_place:
        node.args[0].replace_all_uses_with(
            node, delete_user_cb=lambda user, after=position[node]: position[user] > after
        )
    module.graph.lint()
    module.recompile()
    return True


def _functional(target: torch._ops.OpOverload) -> Any:
    name = target._schema.name.split('::')[1]
    mutated = [argument.name for argument in target._schema.arguments if argument.is_write]
    if not name.endswith('_') or mutated != [target._schema.arguments[0].name]:
        return None
    functional = getattr(getattr(torch.ops, target.namespace), name.removesuffix('_'), None)
    return getattr(functional, target._overloadname, None)


def _keeps_type(node: torch.fx.Node, functional: Any) -> bool:
    if not all('val' in source.meta for source in (node, *node.all_input_nodes)):
        return False  # it is not known
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: source.meta['val'])
    return functional(*args, **kwargs).dtype == node.meta['val'].dtype


def _has_no_view(node: Any) -> bool:
    if node.op != 'call_function' or not isinstance(node.target, torch._ops.OpOverload):
        return False
    for call in (node, *node.users):
        schema = call.target._schema if isinstance(call.target, torch._ops.OpOverload) else None
        if (
            schema
            and not schema.is_mutable
            and any(output.alias_info is not None for output in schema.returns)
        ):
            return False
    return True


FIRST_OF_FUNCTIONS = 8
"""IR version of the first files with local functions."""
STACK_TRACE = 'pkg.torch.onnx.stack_trace'
"""Metadata of a dynamo node: paths and lines of its source."""


def export_stages(
    stages: Sequence[Stage], example: Mapping[str, torch.Tensor], spec: GraphSpec, options: Options
) -> onnx.ModelProto:
    """Export each stage and merge them into one graph with the spec's inputs and outputs.

    Means of large maps are summed in two steps in 'fp32'; float16 is not written here.

    - `stages`: the chain; outputs of a stage are inputs of later stages by name.
    - `example`: graph input name -> tensor of the traced shape, on the modules' device.
    - `options`: a stage's own exporter and operator form override them.

    Raises:
        ExportError: the exporter failed, or the merged graph has another opset, inputs or outputs than
            requested.
        UsageError: a module does not run on the example.
    """
    tensors = dict(example)
    # tensor name -> dynamic axis -> name of its symbolic dimension
    letters = {tensor.name: tensor.dynamic_axes for tensor in spec.inputs}
    multiples = {tensor.name: tensor.multiple for tensor in spec.inputs}
    ranks = {tensor.name: len(tensor.axes) for tensor in spec.outputs}
    parts = []
    for stage in stages:
        stage.module.eval()  # torch.onnx.export sets the mode that it found, in all parts
        args = tuple(tensors[name] for name in stage.inputs)
        later = () if stage is stages[-1] else stage.outputs
        stage = dataclasses.replace(stage, exporter=stage.exporter or options.exporter)
        ranks |= {name: tensor.dim() for name, tensor in tensors.items()}
        ranks |= {name: MOST_AXES for name in later if name not in ranks}
        ends = {name: ranks[name] for name in (*stage.inputs, *stage.outputs) if name in ranks}
        dynamic = _dynamic_axes(ends, letters, options)
        if not options.get('dynamic', False):
            letters.update({name: {**letters.get(name, {}), 1: f'{name}_rows'} for name in stage.varying})
        with operators_as(stage.operators or current_form()):
            exported = _run_each_image if stage.each_image else _run_with_outputs
            model, outputs = exported(stage, args, dynamic, options.opset, multiples)
        parts.append(model)
        for name, tensor in zip(later, outputs() if later else (), strict=True):
            tensors[name] = tensor.detach()
            axes = letters.get(name, {}).items()
            letters[name] = {axis: letter for axis, letter in axes if axis < tensor.dim()}
        if stage.exporter == 'dynamo':  # it finds that some axes have one size: those are no longer open
            for value in parts[-1].graph.output:
                sizes = value.type.tensor_type.shape.dim
                open_axes = letters.get(value.name, {}).items()
                letters[value.name] = {axis: letter for axis, letter in open_axes if sizes[axis].dim_param}
    model = concatenate(parts, [stage.name for stage in stages], spec.output_names)
    parts.clear()  # of a large model each copy is gigabytes
    for stage in stages:
        for graph_pass in stage.passes:
            model, _ = graph_pass(model)
    if options.get('dynamic') is False:  # files of pictures have the option
        compute_constants(model)
    model, _ = zero_denormals(_with_exact_sums(model, options))
    if options.simplify:
        model = simplify(model)
    model = apply_spec(model, spec)
    check_written(model, options.opset)
    return model


MOST_AXES = 8
"""Rank of a tensor between stages until it is traced; further axes have no effect."""


def _run_with_outputs(
    stage: Stage, args: tuple[torch.Tensor, ...], *how: Any
) -> tuple[onnx.ModelProto, Callable[[], Sequence[torch.Tensor]]]:
    """Return a stage's graph, see `run`, and a function that gives its outputs for `args`."""
    calls: list[Any] = []
    with stage.module.register_forward_hook(lambda _module, _args, result: calls.append(result)):
        try:
            model = run(stage, args, *how)
        except ExportError:
            _example_outputs(stage, args)  # the module's own error
            raise

    def outputs() -> Sequence[torch.Tensor]:
        result = _example_outputs(stage, args) if stage.exporter == 'dynamo' else calls[0]
        return result if isinstance(result, tuple | list) else (result,)

    return model, outputs


def _run_each_image(
    stage: Stage, args: tuple[torch.Tensor, ...], dynamic: Mapping[str, Mapping[int, str]], *how: Any
) -> tuple[onnx.ModelProto, Callable[[], Sequence[torch.Tensor]]]:
    """Export a stage for one image, in a loop over images; inputs of one axis belong to all images."""
    of_image = {name: {axis: axes[axis] for axis in axes if axis} for name, axes in dynamic.items()}
    image = tuple(one[:1].contiguous() if one.dim() > 1 else one for one in args)
    model, outputs = _run_with_outputs(stage, image, of_image, *how)
    for graph_pass in stage.passes:  # they do not see a loop's body
        model, _ = graph_pass(model)
    axes = {name: one.dim() for name, one in zip(stage.inputs, args, strict=True)}
    shared, settings = ([name for name in axes if axes[name] == count] for count in (1, 2))
    return over_images(model, shared, settings), outputs


def _example_outputs(stage: Stage, args: tuple[torch.Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return stage.module(*args)
    except RuntimeError as error:
        size = 'x'.join(map(str, args[0].shape[2:]))
        raise UsageError(
            f'stage {stage.name!r} does not run on the example of {size}; choose another --shape: {error}'
        ) from error


def _with_exact_sums(model: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    if options.get('group_norm') == 'exact':
        model, _ = replace_group_norm(model)
    if options.get('precision') == 'fp32' or options.get('keep_results'):  # a plan is of the float32 graph
        model, _ = split_global_means(model)
    return model


def _dynamic_axes(
    ends: Mapping[str, int], letters: dict[str, dict[int, str]], options: Options
) -> dict[str, dict[int, str]]:
    all_axes = options.get('dynamic', False)
    if all_axes or options.get('dynamic_batch', False):
        # Intermediate tensors keep every axis open; the merged graph gets the letters of the spec.
        for name, rank in ends.items():
            axes = (0, *range(2, rank)) if all_axes else (0,)
            letters.setdefault(name, {axis: f'{name}_{axis}' for axis in axes})
    return {name: letters[name] for name in ends if letters.get(name)}


def save(model: onnx.ModelProto, path: str | Path, metadata: Metadata | None = None) -> None:
    """Add `metadata` to a model, in place, check it, and write it."""
    if metadata is not None:
        props = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**props, **metadata.to_props()})
    try:
        files.save(model, path)
    except ModelFileError as error:
        raise ExportError(f'onnx.checker rejects the exported model: {error}') from error


def has_large_weights(module: torch.nn.Module) -> bool:
    """Return whether a file with a module's weights is over protobuf's limit of 2 GiB."""
    weights = itertools.chain(module.parameters(), module.buffers())
    return sum(tensor.nbytes for tensor in weights) > files.PROTOBUF_LIMIT


@contextlib.contextmanager
def patched_libraries() -> Iterator[None]:
    """Apply the patches of `LIBRARY_OPERATORS` and `torch_patches`."""
    with contextlib.ExitStack() as stack, without_checkpoints():
        for operator in LIBRARY_OPERATORS:
            stack.enter_context(operator.patch())
        yield


def check_operators(module: torch.nn.Module, opset: int, without: Collection[str] = ()) -> None:
    """Raise UsageError for an opset without an operator that the module needs, see `operators_of`."""
    for operator in operators_of(module, without):
        if opset < operator.opset:
            feature, name = operator.title
            raise UsageError(
                f'--opset-version {opset}: the model has {feature}, which needs opset {operator.opset} or '
                f'later ({name})'
            )


def default_opset(module: torch.nn.Module, exporter: str, without: Collection[str] = ()) -> int:
    lowest = OPSETS.get(exporter, (0,))[0]  # an unknown exporter is refused later
    return max([DEFAULT_OPSET, lowest, *(operator.opset for operator in operators_of(module, without))])


def default_group_norm(module: torch.nn.Module) -> str:
    """Return 'exact' (option `group_norm`) if `module.backbone` normalises by groups, else ''."""
    backbone = getattr(module, 'backbone', None)
    parts = backbone.modules() if isinstance(backbone, torch.nn.Module) else ()
    return 'exact' if any(isinstance(part, torch.nn.GroupNorm) for part in parts) else ''


def run(
    stage: Stage,
    args: tuple[torch.Tensor, ...],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
    multiples: Mapping[str, int] | None = None,
    plain: bool = False,
) -> onnx.ModelProto:
    try:
        is_dynamic = any(dynamic.get(name) for name in stage.inputs)
        sizes = sizes_traced(stage.module) if is_dynamic else contextlib.nullcontext()
        users = exports_unseen()
        with suppress_output(), tracer_warnings(), users, patched_libraries(), torch.no_grad(), sizes:
            if stage.exporter == 'dynamo':
                table = translations()
                for library_operator in LIBRARY_OPERATORS:
                    table = {**library_operator.translations, **table}
                decomposed = contextlib.nullcontext() if plain else decomposed_where_needed(table)
                with decomposed:
                    model = _export_dynamo(stage, args, dynamic, opset, table, multiples or {})
            else:
                model = _export_torchscript(stage, args, dynamic, opset)
            model = finish(model, stage.exporter, opset, export_module)
            model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
            if model.functions:
                model.ir_version = max(model.ir_version, FIRST_OF_FUNCTIONS)
            return model
    except Exception as error:
        if isinstance(root_cause(error), ExportError):  # dynamo wraps it in advice of its own
            raise ExportError(f'stage {stage.name!r} could not be exported: {root_cause(error)}') from error
        later_opset = re.search(r'Support for this operator was added in version (\d+)', str(error))
        advice = f': --opset-version {later_opset[1]}' if later_opset else ''
        has_no_form = stage.exporter == 'torchscript' and isinstance(error, torch.onnx.OnnxExporterError)
        kind = OpsetError if has_no_form else ExportError
        places = [f' ({place})' for place in getattr(error, '__notes__', ()) if place]
        raise kind(
            f'stage {stage.name!r} could not be exported by the {stage.exporter} exporter at opset '
            f'{opset}: {type(error).__name__}: {error}{"".join(places[:1])}{advice}'
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
    plain: bool = False,
) -> onnx.ModelProto:
    """Export a module of flat tensors unchanged: no spec, no merge, no clean-up.

    - `module`: takes `args` by position, returns a tensor or a tuple of tensors; in evaluation mode.
    - `opset`: default 17, or the exporter's lowest if higher.
    - `input_names`: names of all inputs; default input_0, input_1, ...
    - `output_names`: names of the first outputs; others are output_<place>.
    - `dynamic`: input or output name -> axis -> symbol; other axes of inputs are fixed.
    - `plain`: whether dynamo decomposes operators as `torch.onnx.export` does.

    Raises:
        UsageError: unknown exporter, opset, name or axis; equal names.
        ExportError: the exporter failed, or wrote another opset.
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
    model = run(stage, tuple(args), named_axes, opset, plain=plain)
    check_written(model, opset)
    unused = {*names} - {value.name for value in model.graph.input}
    return name_ends(model, stage.outputs, {name: dynamic[name] for name in dynamic if name not in unused})


def check_written(model: onnx.ModelProto, opset: int) -> None:
    written_opset = opsets_of(model).get('')
    if written_opset != opset:
        raise ExportError(
            f'opset {opset} was asked for, the exporter wrote {written_opset}; '
            f'choose an opset that it writes, or --exporter torchscript'
        )
    for node in all_nodes(model):
        if node.domain == 'mmcv':
            raise ExportError(
                f'node {node.name!r}: {node.op_type} is an operator of mmcv without an ONNX version, and '
                'no engine runs it: remove it from the module'
            )
        first = None if node.domain not in ('', 'ai.onnx') else first_opsets().get(node.op_type)
        if first is not None and first > opset:
            raise ExportError(
                f'node {node.name!r}: ONNX has {node.op_type} since opset {first}: --opset-version {first}'
            )


@functools.cache
def first_opsets() -> dict[str, int]:
    """Return operator of ONNX -> the first opset with it."""
    found: dict[str, int] = {}
    for entry in onnx.defs.get_all_schemas_with_history():
        if not entry.domain:
            found[entry.name] = min(found.get(entry.name, entry.since_version), entry.since_version)
    return found


def _export_torchscript(
    stage: Stage, args: tuple[torch.Tensor, ...], dynamic: Mapping[str, Mapping[int, str]], opset: int
) -> onnx.ModelProto:
    from torch.onnx._internal.torchscript_exporter import utils  # which takes a fifth of a second

    # where it fails, the exporter prints the graph: a million letters for a detector
    without_graph = mock.patch.object(torch._C, '_jit_onnx_log', lambda *_: None)
    split_lists = functools.partial(_split_where_needed, utils._split_tensor_list_constants)
    split = mock.patch.object(utils, '_split_tensor_list_constants', split_lists)
    # an index that is empty at the traced size may have elements at another one, an axis of many rows one row
    has_dynamic_sizes = any(axis > 0 for name in stage.inputs for axis in dynamic.get(name, {}))
    steps = linspace_of_one_step() if has_dynamic_sizes else linspace_of_its_type()
    writes = contextlib.nullcontext() if has_dynamic_sizes else without_empty_writes()
    numbers = products_with_flags()
    places = mock.patch.object(utils, '_run_symbolic_function', with_places(utils._run_symbolic_function))
    weights: dict[str, torch.Tensor] = {}
    graphs = mock.patch.object(torch._C.Graph, '_export_onnx', _without_weights(weights))
    inferred = mock.patch.object(torch._C, INFERENCE, _of_small_weights(getattr(torch._C, INFERENCE)))
    traced = (with_a_batch(), without_graph, split, places, listed_values(), graphs, inferred)
    patches = (steps, writes, numbers, *traced)
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
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
    return _with_weights(onnx.load_from_string(stream.getvalue()), weights)


def _without_weights(weights: dict[str, torch.Tensor]) -> Callable[..., Any]:
    """Keep the weights from the exporter, which makes three copies of all and has a limit of 2 GiB."""
    export_onnx = torch._C.Graph._export_onnx

    def export(graph: torch._C.Graph, named: Mapping[str, torch.Tensor], *args: Any) -> Any:
        weights.update(named)
        return export_onnx(graph, {}, *args)

    return export


INFERENCE = '_jit_pass_onnx_graph_shape_type_inference'


def _of_small_weights(infer: Callable[..., Any]) -> Callable[..., Any]:
    """Leave weights that are no shapes out of the inference, which copies them for each node."""

    def run(graph: torch._C.Graph, named: Mapping[str, torch.Tensor], opset: int) -> Any:
        return infer(graph, {name: one for name, one in named.items() if one.numel() <= LARGEST_SHAPE}, opset)

    return run


def _with_weights(model: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """Write inputs that are weights as initializers, and take them out of `weights`."""
    inputs = []
    for value in model.graph.input:
        if value.name not in weights:
            inputs.append(value)
            continue
        tensor, kind = weights.pop(value.name), value.type.tensor_type.elem_type
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        model.graph.initializer.add(name=value.name, data_type=kind, dims=tensor.shape, raw_data=content)
    refill(model.graph, input=inputs)
    return model


def _split_where_needed(split: Callable[[Any, Any], None], graph: Any, _: Any) -> None:
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
    with translations_read_once():
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


HANDLER, TORCH = '__torch_function__', Path(torch.__file__).parent
OF_VALUES = ('equal', 'allclose', 'is_nonzero')
SILENT: dict[Any, tuple[str, ...]] = {torch: OF_VALUES, torch.Tensor: OF_VALUES, torch.jit: ('is_tracing',)}
"""Owner -> functions that return a bool, of values or of the trace itself, without a tracer warning."""


@dataclasses.dataclass(frozen=True)
class CodeWarning:
    """A line of the user's code where a trace keeps a fact of the traced example.

    `text` is PyTorch's warning, or the called function.
    """

    file: str
    line: int
    text: str


_collected: contextvars.ContextVar[list[CodeWarning] | None] = contextvars.ContextVar(
    'warnings', default=None
)


@contextlib.contextmanager
def recorded_warnings(records: list[CodeWarning]) -> Iterator[None]:
    """Add the warnings of all exports to `records`, each once."""
    token = _collected.set(records)
    try:
        yield
    finally:
        _collected.reset(token)


@contextlib.contextmanager
def tracer_warnings() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.showwarning = _show
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', torch.jit.TracerWarning)
        for owner, names in SILENT.items():
            for name in names:
                noted = _noted(getattr(owner, name), name)
                stack.enter_context(mock.patch.object(owner, name, noted))
        yield


def _show(message: Warning, _category: type[Warning], file: str, line: int, *_: Any) -> None:
    text = str(message).partition(' might cause')[0]
    _record(*_before_modes(file, line), f'PyTorch warns "{text} ..."')


def _before_modes(file: str, line: int) -> tuple[str, int]:
    """Return the place of a warning, behind a `TorchFunctionMode` that has passed the call on."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != HANDLER:
        return file, line
    while frame.f_code.co_name == HANDLER or Path(frame.f_code.co_filename).is_relative_to(TORCH):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


ASKED = 'is_in_onnx_export'
_is_in_onnx_export = types.FunctionType(torch.onnx.is_in_onnx_export.__code__, vars(torch.onnx))


@contextlib.contextmanager
def exports_unseen() -> Iterator[None]:
    """Answer `torch.onnx.is_in_onnx_export()` in the user's files with False, and record their lines.

    So that the graph has the branch that PyTorch runs. Libraries need the answer to be exported at all.
    """
    # its code, since files may have imported the function itself
    with patched(torch.onnx.is_in_onnx_export, __code__=_ask.__code__):
        yield


_whole: contextvars.ContextVar[bool] = contextvars.ContextVar('whole_path', default=False)


@contextlib.contextmanager
def whole_path() -> Iterator[None]:
    """Inside the block libraries do not see an export either, except mmcv, which has operators for it."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def _ask() -> bool:
    """Stand for `torch.onnx.is_in_onnx_export`; it runs with the globals of torch.onnx."""
    import sys

    from mmdeploy_ext.exporting.export import answer_to

    return answer_to(sys._getframe(1))


def answer_to(caller: types.FrameType) -> bool:
    """Return whether an export runs, as a frame is to see it."""
    file = caller.f_code.co_filename
    if _whole.get() and package_of(Path(file)) not in ('torch', 'mmcv'):
        return False
    if not _is_in_onnx_export() or not _is_users_branch(file):
        return _is_in_onnx_export()
    _record(file, caller.f_lineno, f'asks {ASKED}(): False, as in PyTorch')
    return False


@functools.lru_cache(maxsize=1024)
def _is_users_branch(file: str) -> bool:
    copy = copied_file(file)
    in_library = copy is not None and ASKED in copy[1].read_text(encoding='utf-8')
    return is_users_file(Path(file).resolve()) and not in_library


def _noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if torch._C._get_tracing_state() is not None:
            caller = sys._getframe(1)
            _record(
                caller.f_code.co_filename, caller.f_lineno, f'calls {name}(), of which PyTorch does not warn'
            )
        return function(*args, **kwargs)

    return noted


def _record(file: str, line: int, text: str) -> None:
    records, entry = _collected.get(), CodeWarning(file, line, text)
    if records is not None and entry not in records and is_users_file(Path(file).resolve()):
        records.append(entry)
