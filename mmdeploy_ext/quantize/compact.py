"""Makes an INT8 file smaller without changing a number: equal constants are merged, names are shortened.

A quantiser writes a zero point per tensor and channel, nearly all of them zeros, and names of up to a
hundred letters. In a model of a megabyte that is a tenth of the file.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

from onnx import numpy_helper

from mmdeploy_ext.graph.io.index import Index, captured, refill
from mmdeploy_ext.graph.passes.rename import rename

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
"""Suffix of names that ONNX Runtime's quantiser makes -> short suffix."""


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with equal constants merged and the quantiser's names shortened.

    Inputs, outputs and tensors that bodies of nodes (If, Loop) read keep their names. Constants are equal if
    type, shape and every bit are.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.value_info[:]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    fixed |= {name for node in graph.node for name in captured(node)}
    _merge_constants(graph, fixed, set(Index(result).tensors))
    index = Index(result)
    tensors = _short_names((name for name in index.tensors if name not in fixed), set(index.tensors))
    names = [node.name for node in graph.node]
    return rename(result, tensors, _short_names(names, set(names)))


def _merge_constants(graph: onnx.GraphProto, fixed: set[str], used_names: set[str]) -> None:
    """Keep the first of equal constants under a new short name, since it stands for several tensors."""
    groups: dict[tuple[int, bytes, bytes], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        fixed_name = tensor.name.encode() if tensor.name in fixed else b''
        key = tensor.data_type, str(values.shape).encode() + fixed_name, values.tobytes()
        groups.setdefault(key, []).append(tensor)
    new_names = (name for name in map('c{}'.format, itertools.count()) if name not in used_names)
    merged: dict[str, str] = {}
    for tensors in groups.values():
        if len(tensors) > 1:
            merged |= dict.fromkeys([tensor.name for tensor in tensors], next(new_names))
            tensors[0].name = merged[tensors[0].name]
    refill(graph, initializer=[tensors[0] for tensors in groups.values()])
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = merged.get(name, name)


def _short_names(names: Iterable[str], used_names: set[str]) -> dict[str, str]:
    """Return name -> short name for names that a quantiser made; short names in use are skipped."""
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
