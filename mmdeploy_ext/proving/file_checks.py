"""Checks of a graph against a fresh export, spec and options."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import Mm2OnnxError, ModelFileError, UsageError, one_line
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.base.violations import WARNING, errors
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.exporting.int8.dense import QUANTISE
from mmdeploy_ext.exporting.precision_plan import has_ranges, plan_of, quantised_as, with_plan_of
from mmdeploy_ext.exporting.sparse import libspconv_contract
from mmdeploy_ext.families import detector_files as files
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import prepare_fixed
from mmdeploy_ext.graphs import signature
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import openable
from mmdeploy_ext.graphs.io.index import count_nodes, random_nodes, reads, refill
from mmdeploy_ext.graphs.passes.fp16 import BF16_OPSET
from mmdeploy_ext.proving.quantised import UndoneFile
from mmdeploy_ext.spec.metadata import BF16, OF_SPARSE_GRAPHS, PREFIX
from mmdeploy_ext.spec.registry import registration_of
from mmdeploy_ext.spec.results import AS_WRITTEN, SHOWN, Check, GraphDifference, GraphResult, first_lines
from mmdeploy_ext.spec.tensors import written_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec

    Export = Callable[[], onnx.ModelProto]


@contextlib.contextmanager
def option_errors(path: str) -> Iterator[None]:
    """Turn an option's UsageError into the file's ModelFileError."""
    try:
        yield
    except UsageError as error:
        raise ModelFileError(
            f'{path}: the options in the file are not valid: {error}; export it again'
        ) from error


def of_images(detector: Detector, options: Options, image_bgr: np.ndarray, size: tuple[int, int]) -> Export:
    """Return the function that exports an image file from any image; `size`: traced height and width."""

    def export() -> onnx.ModelProto:
        traced = prepare_fixed(detector.rule, image_bgr, *size)
        return files.export_graphs(detector, options, [traced])[0][0]

    return export


def of_graphs(detector: Detector, options: Options) -> Callable[[str], onnx.ModelProto]:
    """Return the function that exports a graph by name; all use one copy of the model."""

    @functools.cache
    def graphs() -> dict[str, Graph]:
        made = contract_of(detector.family, options).graphs(prepared(detector.model), options)
        return {graph.name: graph for graph in made}

    def export(name: str) -> onnx.ModelProto:
        if name not in graphs():
            raise ModelFileError(f'the model has no graph {name!r} with the options in the file')
        with recorded_warnings(detector.code_warnings):
            keep_fp32 = registration_of(detector.family.name).keep_fp32
            return files.export_graph(graphs()[name], options, keep_fp32)

    return export


def not_compared(
    name: str, nodes: int, edits: Sequence[str], *, edited: bool, written: bool, planned: bool = False
) -> GraphResult | None:
    """Return the result of a file that needs no fresh export, else None; `planned`: see `plan_of`."""
    if written:
        return GraphResult(name, nodes, False, left_out=AS_WRITTEN)
    others = [edit for edit in edits if not edit.startswith(QUANTISE)]
    if planned or edited or not others:
        return None
    commands = ', '.join(dict.fromkeys(others))
    error = f'edited by graph {commands}: pass --edited to compare only the outputs'
    return GraphResult(name, nodes, False, error=error)


def compare_with_fresh_export(
    model: onnx.ModelProto, export: Export, name: str = '', edits: Sequence[str] = ()
) -> GraphResult:
    """Compare a file's nodes, weights, and sparse metadata with its fresh export, changed by its plan."""
    nodes = count_nodes(model)
    try:
        fresh = export()
        if plan := plan_of(model, edits):
            fresh = with_plan_of(model, plan, fresh)
        elif QUANTISE in edits and has_ranges(model):
            fresh = quantised_as(model, fresh)
        elif edits:
            undone = UndoneFile(model, fresh)
            found = undone.differences
            return GraphResult(name, nodes, not found, tuple(found), detail=undone.text, undone=undone)
    except Mm2OnnxError as error:
        text = f'no fresh export to compare with: {one_line(error)[:500]}'
        return GraphResult(name, nodes, False, error=text)
    found = differing_facts(model, fresh) or signature.differences(model, fresh)
    return GraphResult(name, nodes, not found, tuple(found))


def differing_facts(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[GraphDifference]:
    """Return a difference per `OF_SPARSE_GRAPHS` entry unlike the fresh export's."""
    file_entries, fresh_entries = (
        {entry.key: entry.value for entry in graph.metadata_props} for graph in (model, fresh)
    )
    keys = [PREFIX + name for name in OF_SPARSE_GRAPHS]
    return [
        GraphDifference('metadata', key, '', 'differs from the fresh export')
        for key in keys
        if _parsed(file_entries.get(key)) != _parsed(fresh_entries.get(key))
    ]


def _parsed(text: str | None) -> object:
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return text


def check_structure(model: onnx.ModelProto, metadata: Metadata, edited: bool = False) -> list[Check]:
    """Return checks without a model: validity, opset, precision, interface, operators.

    Edited files may have another opset.
    """
    opset = metadata.options['opset']
    opset = max(opset, BF16_OPSET) if BF16 in metadata.edits else opset
    opsets = [entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')]
    is_asked = opsets == [opset] or (edited and len(opsets) == 1)
    # an undeclared float16 file would be judged by the bars of float32
    claimed, precision = metadata.options.get('precision') or 'fp32', written_precision(model)
    claimed = 'bf16' if BF16 in metadata.edits else claimed
    return [
        check_valid(model),
        check_inference(model),
        Check('opset', is_asked, f'requested {opset}, the file has {opsets}'),
        Check('precision', precision == claimed, f'requested {claimed}, the file has {precision}'),
        *check_interface(model, metadata.spec),
        check_inputs_used(model, metadata.spec),
        check_not_random(model),
    ]


def check_valid(model: onnx.ModelProto) -> Check:
    try:
        with openable(model) as source:
            onnx.checker.check_model(source)
    except onnx.checker.ValidationError as error:
        return Check('onnx.checker', False, one_line(error)[:300])
    return Check('onnx.checker', True)


def check_dialect(
    path: str, model: onnx.ModelProto, max_voxels: int | None = None
) -> tuple[list[Check], list[str]]:
    """Check a file against the contract of libspconv's engine; return the check, and warnings."""
    violations = libspconv_contract.check(model, max_voxels=max_voxels, name=path)
    wrong = [f'{entry.node or "file"}: {entry.rule}: {entry.message}' for entry in errors(violations)]
    warnings = [entry for entry in violations if entry.severity == WARNING]
    notes = [f'contract: {entry.node or "file"}: {entry.message}' for entry in warnings[:SHOWN]]
    if len(warnings) > SHOWN:
        notes.append(f'contract: {len(warnings) - SHOWN} more warnings; run {tool("check")} to see them')
    count = f'{len(model.graph.node)} nodes by the rules of the engine'
    return [Check("contract of NVIDIA's engine", not wrong, first_lines(wrong) or count)], notes


def check_not_random(model: onnx.ModelProto) -> Check:
    drawn = random_nodes(model)
    return Check('no operator draws random numbers', not drawn, ', '.join(drawn[:5]))


def check_inference(model: onnx.ModelProto) -> Check:
    """Infer all types and shapes strictly with ONNX, with large weights as inputs."""
    light, small = types.skeleton(model), []
    for tensor in light.graph.initializer:
        if math.prod(tensor.dims) > types.LARGEST_SHAPE:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
        else:
            small.append(tensor)
    refill(light.graph, initializer=small)
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return Check('strict shape inference', False, one_line(error)[:300])
    return Check('strict shape inference', True)


def check_interface(model: onnx.ModelProto, spec: GraphSpec) -> list[Check]:
    """Check names, dtypes, axes, order and defaults of inputs and outputs against the spec."""
    checks = []
    for title, values in (('inputs', model.graph.input), ('outputs', model.graph.output)):
        tensors = getattr(spec, title)
        actual = [_interface_tensor(value) for value in values]
        expected = [(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]
        pairs = zip(actual, expected, strict=False)
        differing = [f'got {got}, expected {tensor}' for got, tensor in pairs if got != tensor]
        if len(actual) != len(expected):
            names, expected_names = ([entry[0] for entry in side] for side in (actual, expected))
            absent = ', '.join(name for name in expected_names if name not in names)
            extra = ', '.join(name for name in names if name not in expected_names)
            differing.insert(0, f'absent: {absent or "none"}, too many: {extra or "none"}')
        if title == 'inputs':
            differing += _differing_defaults(model, tensors)
        checks.append(Check(f'{title} equal the spec', not differing, '; '.join(differing)[:300]))
    return checks


def _interface_tensor(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor_type = value.type.tensor_type
    axes = tuple(
        dim.dim_value if dim.HasField('dim_value') else dim.dim_param for dim in tensor_type.shape.dim
    )
    has_dtype = tensor_type.elem_type in onnx.helper.get_all_tensor_dtypes()
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)) if has_dtype else '?'
    return value.name, dtype, axes


def _differing_defaults(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> list[str]:
    names = {tensor.name for tensor in inputs}
    defaults = [value for value in model.graph.initializer if value.name in names]
    initializers = {value.name: numpy_helper.to_array(value) for value in defaults}
    differing = []
    for tensor in inputs:
        array = initializers.get(tensor.name)
        expected = 'none' if not tensor.is_optional else f'{tensor.default:g}'
        if array is None and tensor.is_optional:
            differing.append(f'{tensor.name} has no default, expected {expected}')
        elif array is not None and not _is_default(array, tensor):
            values = ', '.join(map(str, sorted({*array.flatten().tolist()})[:3]))
            text = f'{values} {array.dtype}{list(array.shape)}'
            differing.append(f'{tensor.name} has the default {text}, expected {expected}')
    return differing


def _is_default(array: np.ndarray, tensor: TensorSpec) -> bool:
    if not tensor.is_optional or array.ndim != len(tensor.axes) or not array.size:
        return False
    sizes = zip(array.shape, tensor.axes, strict=True)
    shape = tuple(size if isinstance(axis, str) else axis for size, axis in sizes)
    return array.dtype == np.dtype(tensor.dtype) and np.array_equal(array, np.full(shape, tensor.default))


def check_inputs_used(model: onnx.ModelProto, spec: GraphSpec) -> Check:
    """Check that every input not marked `unused` reaches an output."""
    used = [tensor.name for tensor in spec.inputs if not tensor.unused]
    frozen = unreached_inputs(model, used, spec.output_names)
    detail = f'frozen: {", ".join(frozen)}' if frozen else ''
    return Check('every input reaches an output', not frozen, detail)


def unreached_inputs(model: onnx.ModelProto, names: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Return the inputs of `names` without a path to one of `outputs`."""
    reached = set(outputs)
    for node in reversed(model.graph.node):
        if reached.intersection(node.output):
            reached.update(reads(node))
    return [name for name in names if name not in reached]
