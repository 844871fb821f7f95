"""Make an INT8 file small without touching a number: equal constants once, short names.

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

MADE = {
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
"""Endings of the names that ONNX Runtime's quantiser makes -> what they become."""


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which equal constants are one, and the quantiser's names are short.

    Inputs, outputs and what bodies of nodes (If, Loop) read keep their names. Constants are equal when type,
    shape and every bit are.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.value_info[:]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    fixed |= {name for node in graph.node for name in captured(node)}
    _merge_constants(graph, fixed, set(Index(result).tensors))
    index = Index(result)
    tensors = _shorter((name for name in index.tensors if name not in fixed), set(index.tensors))
    names = [node.name for node in graph.node]
    return rename(result, tensors, _shorter(names, set(names)))


def _merge_constants(graph: onnx.GraphProto, fixed: set[str], taken: set[str]) -> None:
    """Keep one of equal constants; what stands for several belongs to none of them and gets a short name."""
    groups: dict[tuple[int, bytes, bytes], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        alone = tensor.name.encode() if tensor.name in fixed else b''
        key = tensor.data_type, str(values.shape).encode() + alone, values.tobytes()
        groups.setdefault(key, []).append(tensor)
    free = (name for name in map('c{}'.format, itertools.count()) if name not in taken)
    same: dict[str, str] = {}
    for tensors in groups.values():
        if len(tensors) > 1:
            same |= dict.fromkeys([tensor.name for tensor in tensors], next(free))
            tensors[0].name = same[tensors[0].name]
    refill(graph, initializer=[tensors[0] for tensors in groups.values()])
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = same.get(name, name)


def _shorter(names: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Return old name -> new name of those that a quantiser made; none that is taken."""
    found = {}
    for name in names:
        end = next((end for end in MADE if name.endswith(end)), None)
        new = name.removesuffix(end) + MADE[end] if end else name
        if new not in taken:
            found[name] = new
            taken.add(new)
    return found
