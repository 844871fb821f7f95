"""A finished graph in half precision, as the options of an export or a command ask for it."""

import copy
import dataclasses
import glob
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.contract.metadata import PREFIX, Metadata, read_entry
from mmdeploy_ext.contract.registry import registration_of
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index, constant_value
from mmdeploy_ext.graph.output_comparison import spec_of, with_half_ends
from mmdeploy_ext.graph.passes.fp16 import PRODUCTS, exceeds_half, to_fp16
from mmdeploy_ext.graph.passes.select import match_patterns, matching_nodes

FACTS = 'fp16.'
"""Prefix of the entries of `metadata_props` about the precision."""
STAGES = ('decode/*', 'postprocess/*', 'proposals/*', 'regions/*', 'paste/*', 'fusion/*')
"""Patterns of the names of nodes that make and read boxes and maps: in float16 a pixel near 608 is 0.5 wide,
and a map has more pixels than float16 can count."""


def in_precision(
    model: onnx.ModelProto, spec: GraphSpec, options: Any, defaults: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return a finished graph in the precision of its options, and describe it in its metadata.

    The entries of `metadata_props` are `fp16.keep_fp32`, the patterns of the options as JSON, and the numbers
    `fp16.kept_nodes`, of the nodes that a pattern fits, and `fp16.nodes`, of all nodes, before float16 was
    written. They are for a reader of the file; an entry that it has already stays, and files that become
    float16 later have none (`with_fp16_metadata`).

    Args:
        model: float32; its inputs and outputs are the spec's.
        spec: states by dtype which inputs and outputs are float16, and by `single` the parts that stay
            float32.
        options: options of the export; `precision` ('fp32' or 'fp16') and `keep_fp32` (patterns of nodes) are
            read.
        defaults: patterns of the family's nodes that stay float32. Patterns that fit nothing are no mistake
            here, since several graphs share them; see `check_patterns`.
    """
    if options.precision == 'fp32':
        return model
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
    """Return a float32 model with float16 written into it, and how many nodes a pattern keeps in float32.

    Args:
        model: float32.
        io: precision of float32 inputs and outputs: 'fp16' makes them float16, but for inputs with a default;
            'fp32' leaves them.
        keep_fp32: patterns of nodes that stay float32, besides those of `fp32_patterns`; see
            `matching_nodes`.
    """
    spec, patterns = spec_of(model), [*fp32_patterns(model), *keep_fp32]
    count = len(matching_nodes(model.graph.node, patterns))
    return to_fp16(model, with_half_ends(spec) if io == 'fp16' else spec, patterns), count


def fp32_patterns(model: onnx.ModelProto) -> list[str]:
    """Return patterns of the nodes that stay float32 by default when float16 is written into a model.

    - The stages after the network, `STAGES`.
    - An Equal of floats, and what it compares back to the last product, an operator of `PRODUCTS` (MatMul,
      Gemm, Conv, ConvTranspose), also one of two computed tensors: SOLO keeps the cells that equal the
      maximum of their neighbourhood, and an engine that keeps one side of the comparison in more digits than
      the other finds no such cell (measured on the toy SOLOv2 in ONNX Runtime: cosine 0.03).
    - What reads a constant beyond float16, unless it is an operator of `PRODUCTS`, and what is computed from
      it up to the next product: YOLOF bounds exponentials by 1e8 before it takes the logarithm of their sum.
    """
    names = [node.name for node in model.graph.node]
    stages = [pattern for pattern in STAGES if any(name.startswith(pattern[:-1]) for name in names)]
    index = Index(model)
    staged = {
        position
        for position, name in enumerate(names)
        if any(name.startswith(stage[:-1]) for stage in stages)
    }
    floats = {
        name
        for name, value_type in types.infer(model).items()
        if value_type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    compared: set[int] = set()
    waiting = [
        position
        for position, node in enumerate(index.nodes)
        if node.op_type == 'Equal' and node.input[0] in floats
    ]
    while waiting:
        position = waiting.pop()
        if position not in compared and index.nodes[position].op_type not in PRODUCTS:
            compared.add(position)
            producers = {index.producer(name) for name in floats.intersection(index.reads(position))}
            waiting.extend(producers - {None})
    single = compared | _beyond_half(model, index, staged)
    return stages + [glob.escape(index.writes(position)[0]) for position in sorted(single)]


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
    """Return the patterns of nodes that the family of a model keeps in float32 and that fit its nodes."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}family' not in props:
        return []
    family = read_entry(props, 'family', 'the file')
    positions = match_patterns(model.graph.node, registration_of(family).keep_fp32)
    return [pattern for pattern, nodes in positions.items() if nodes]


def with_fp16_metadata(model: onnx.ModelProto, fp16_io: bool, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model that became float16 after its export, with metadata about it.

    Args:
        model: model in float16, which is not converted here.
        fp16_io: its inputs and outputs became float16, too.
        keep_fp32: patterns of nodes that stayed float32; see `matching_nodes`.
    """
    props = {entry.key: entry.value for entry in model.metadata_props}
    try:
        metadata = Metadata.from_props(props)
    except ModelFileError:
        return model
    options = dict(metadata.options, precision='fp16', fp16_io=fp16_io, keep_fp32=list(keep_fp32))
    spec = with_half_ends(metadata.spec) if fp16_io else metadata.spec
    changed = dataclasses.replace(metadata, options=options, spec=spec)
    result = copy.deepcopy(model)
    onnx.helper.set_model_props(result, {**props, **changed.to_props()})
    return result


def check_patterns(models: Iterable[onnx.ModelProto], patterns: Sequence[str]) -> None:
    """Raise UsageError, with similar names, for a pattern that fits no node of any graph of an export."""
    if patterns:
        matching_nodes([node for model in models for node in model.graph.node], patterns)
