"""Shrinks an INT8 file: merges equal initializers, shortens names (0.1 MB)."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

from onnx import TensorProto, numpy_helper

from mmdeploy_ext.graphs.io.index import Index, captured, refill
from mmdeploy_ext.graphs.passes.rename import all_tensor_names, rename_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

SHORT_SUFFIXES = {
    '_QuantizeLinear_Output': '.q',
    '_DequantizeLinear_Output': '.dq',
    '_QuantizeLinear_Input': '.in',
    '_QuantizeLinear': '.Q',
    '_DequantizeLinear': '.DQ',
    '_quantized_scale': '.qs',
    '_quantized_zero_point': '.qz',
    '_quantized': '.int',
    '_zero_point': '.z',
    '_scale': '.s',
}
"""Suffix of ONNX Runtime's quantiser -> short suffix; the first match counts."""


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with equal initializers merged ('c0', ...) and names of `SHORT_SUFFIXES` shortened.

    Inputs, outputs and tensors read by bodies keep names; drops `value_info`.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.value_info[:]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    fixed |= {name for node in graph.node for name in captured(node)}
    _merge_constants(graph, fixed, set(all_tensor_names(result)))
    names_in_graph = (name for name in Index(result).tensors if name not in fixed)
    tensors = _short_names(names_in_graph, set(all_tensor_names(result)))
    rename_tensors(graph, lambda name: tensors.get(name, name))
    names = [node.name for node in graph.node]
    short_names = _short_names(names, set(names))
    for node in graph.node:
        node.name = short_names.get(node.name, node.name)
    return result


def _merge_constants(graph: onnx.GraphProto, fixed: set[str], used_names: set[str]) -> None:
    groups: dict[tuple[object, ...], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        is_text = tensor.data_type == TensorProto.STRING  # an array of texts holds addresses, not texts
        values = tuple(tensor.string_data) if is_text else numpy_helper.to_array(tensor).tobytes()
        fixed_name = tensor.name if tensor.name in fixed else ''
        groups.setdefault((tensor.data_type, *tensor.dims, fixed_name, values), []).append(tensor)
    new_names = (name for name in map('c{}'.format, itertools.count()) if name not in used_names)
    merged: dict[str, str] = {}
    for tensors in groups.values():
        if len(tensors) > 1:
            merged |= dict.fromkeys([tensor.name for tensor in tensors], next(new_names))
    refill(graph, initializer=[tensors[0] for tensors in groups.values()])
    rename_tensors(graph, lambda name: merged.get(name, name))


def _short_names(names: Iterable[str], used_names: set[str]) -> dict[str, str]:
    renamed = {}
    for name in names:
        suffix = next((suffix for suffix in SHORT_SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            continue
        short = name.removesuffix(suffix) + SHORT_SUFFIXES[suffix]
        if short not in used_names:
            renamed[name] = short
            used_names.add(short)
    return renamed
