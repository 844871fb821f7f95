"""A finished graph in half precision, as the options of an export or a command ask for it."""

import copy
import dataclasses
import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.graphs.io.index import Index, constant_value
from mmdeploy_ext.graphs.output_comparison import spec_of, with_half_ends
from mmdeploy_ext.graphs.passes.fp16 import (
    PRODUCTS,
    compared_outputs,
    exceeds_half,
    to_fp16,
    to_lower,
)
from mmdeploy_ext.graphs.passes.select import match_patterns, matching_nodes
from mmdeploy_ext.spec.metadata import PREFIX, Metadata, read_entry
from mmdeploy_ext.spec.registry import registration_of
from mmdeploy_ext.spec.tensors import GraphSpec

TRANSFORMER = 'postprocess/transformer/'
FACTS = 'fp16.'
"""Prefix of the entries of `metadata_props` about the precision."""
STAGES = ('decode/*', 'postprocess/*', 'proposals/*', 'regions/*', 'paste/*', 'fusion/*')
"""Patterns of nodes that make and read boxes and maps: near 608 px float16 has steps of 0.5 px.

Without them the toy ATSS keeps 712 of 714 results of a picture of 1344 px.
"""


def in_precision(
    model: onnx.ModelProto, spec: GraphSpec, options: Any, defaults: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return a finished float32 graph in the precision of its options, described in its metadata.

    With `keep_results`, `keep_fp32` is the plan of a search: besides it only `required_fp32` stays.
    Metadata: `fp16.keep_fp32` (JSON list of patterns), `fp16.kept_nodes` and `fp16.nodes` (counts before the
    change).

    Args:
        model: float32; its inputs and outputs are the spec's.
        spec: dtype says which inputs and outputs are float16, `single` which parts stay float32.
        options: `precision`, `keep_results` and `keep_fp32` (patterns of nodes) are read.
        defaults: patterns of the family's float32 nodes; they may fit nothing, see `check_patterns`.
    """
    if options.precision == 'fp32':
        return model
    if options.keep_results:
        half_ends = [tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.dtype == 'float16']
        return to_lower(model, options.precision, options.keep_fp32, half_ends)
    positions = match_patterns(model.graph.node, (*defaults, *options.keep_fp32))
    patterns = [*fp32_patterns(model), *(pattern for pattern, nodes in positions.items() if nodes)]
    result = to_fp16(model, spec, patterns)
    facts = {
        f'{FACTS}keep_fp32': json.dumps(list(options.keep_fp32)),
        f'{FACTS}kept_nodes': str(len(matching_nodes(model.graph.node, patterns))),
        f'{FACTS}nodes': str(len(model.graph.node)),
    }
    stated = {entry.key: entry.value for entry in result.metadata_props}
    onnx.helper.set_model_props(result, {**stated, **facts, **stated})
    return result


def half(model: onnx.ModelProto, io: str, keep_fp32: Sequence[str]) -> tuple[onnx.ModelProto, int]:
    """Write float16 into a float32 model; return it and the number of nodes that a pattern keeps.

    `io` 'fp16' converts float32 inputs (without a default) and outputs, too. `keep_fp32` adds to
    `fp32_patterns`; see `matching_nodes`. Inputs and outputs are `single` as the file's metadata says.
    """
    spec, patterns = _with_single(spec_of(model), model), [*fp32_patterns(model), *keep_fp32]
    count = len(matching_nodes(model.graph.node, patterns))
    return to_fp16(model, with_half_ends(spec) if io == 'fp16' else spec, patterns), count


def _with_single(spec: GraphSpec, model: onnx.ModelProto) -> GraphSpec:
    try:
        stated = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}).spec
    except ModelFileError:
        return spec
    single = {tensor.name for tensor in (*stated.inputs, *stated.outputs) if tensor.single}
    inputs, outputs = (
        tuple(dataclasses.replace(tensor, single=tensor.name in single) for tensor in tensors)
        for tensors in (spec.inputs, spec.outputs)
    )
    return dataclasses.replace(spec, inputs=inputs, outputs=outputs)


def fp32_patterns(model: onnx.ModelProto) -> list[str]:
    """Return patterns of the nodes that stay float32 by default.

    - The stages after the network, `STAGES`, without a transformer in them (of traced test paths).
    - An Equal of floats, and its operands back to the last product, see `compared_outputs`.
    - Nodes that read a constant beyond float16, except products, up to the next product: YOLOF bounds
      exponentials by 1e8.
    """
    names = [node.name for node in model.graph.node]
    stages = [pattern for pattern in STAGES if any(name.startswith(pattern[:-1]) for name in names)]
    index = Index(model)
    staged = {
        position
        for position, name in enumerate(names)
        if any(name.startswith(stage[:-1]) for stage in stages) and not name.startswith(TRANSFORMER)
    }
    if any(name.startswith(TRANSFORMER) for name in names):
        stages = [glob.escape(names[position]) for position in sorted(staged)]
    beyond = _beyond_half(model, index, staged)
    single = [*compared_outputs(model), *(index.writes(position)[0] for position in sorted(beyond))]
    return stages + list(map(glob.escape, dict.fromkeys(single)))


def _beyond_half(model: onnx.ModelProto, index: Index, staged: set[int]) -> set[int]:
    arrays = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    for node in model.graph.node:
        value = constant_value(node)
        if value is not None and value.dtype == np.float32:
            arrays[node.output[0]] = value
    large = {name for name, array in arrays.items() if exceeds_half(array)}
    waiting = [position for name in large for position in index.consumers(name) if position not in staged]
    beyond: set[int] = set()
    while waiting:
        position = waiting.pop()
        if position not in beyond | staged and index.nodes[position].op_type not in PRODUCTS:
            beyond.add(position)
            waiting += [later for name in index.writes(position) for later in index.consumers(name)]
    return beyond


def family_patterns(model: onnx.ModelProto) -> list[str]:
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}family' not in props:
        return []
    family = read_entry(props, 'family', 'the file')
    positions = match_patterns(model.graph.node, registration_of(family).keep_fp32)
    return [pattern for pattern, nodes in positions.items() if nodes]


def with_fp16_metadata(
    model: onnx.ModelProto, fp16_io: bool, keep_fp32: Sequence[str], keep_results: float = 0.0
) -> onnx.ModelProto:
    """Return a copy with metadata of its conversion to float16, which is done already.

    `fp16_io`: inputs and outputs were converted, too; `keep_fp32`: patterns of nodes that stayed float32, the
    plan of a search with `keep_results`.
    """
    props = {entry.key: entry.value for entry in model.metadata_props}
    try:
        metadata = Metadata.from_props(props)
    except ModelFileError:
        return model
    options = dict(metadata.options, precision='fp16', fp16_io=fp16_io, keep_fp32=list(keep_fp32))
    options |= dict(keep_results=keep_results) if keep_results else {}
    spec = with_half_ends(metadata.spec) if fp16_io else metadata.spec
    changed = dataclasses.replace(metadata, options=options, spec=spec)
    result = copy.deepcopy(model)
    onnx.helper.set_model_props(result, {**props, **changed.to_props()})
    return result


def with_groups(model: onnx.ModelProto, metadata: Metadata, groups: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a copy whose spec has other column groups; tensor -> groups."""
    inputs, outputs = (
        tuple(dataclasses.replace(tensor, groups=groups.get(tensor.name, tensor.groups)) for tensor in side)
        for side in (metadata.spec.inputs, metadata.spec.outputs)
    )
    spec = dataclasses.replace(metadata.spec, inputs=inputs, outputs=outputs)
    props = {entry.key: entry.value for entry in model.metadata_props}
    result = copy.deepcopy(model)
    changed = dataclasses.replace(metadata, spec=spec).to_props()
    onnx.helper.set_model_props(result, {**props, **changed})
    return result


def check_patterns(models: Iterable[onnx.ModelProto], patterns: Sequence[str]) -> None:
    """Raise UsageError, with similar names, for a pattern that fits no node of any graph of an export."""
    if patterns:
        matching_nodes([node for model in models for node in model.graph.node], patterns)
