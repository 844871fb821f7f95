"""Makes an INT8 file smaller without changing a result: equal initializers are merged, names shortened.

A quantiser writes a zero point per tensor and channel, nearly all of them zeros, and names of up to a
hundred letters. In a model of a megabyte that is a tenth of the file.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

from onnx import TensorProto, numpy_helper

from mmdeploy_ext.graph.io.index import Index, captured, refill
from mmdeploy_ext.graph.passes.rename import all_tensor_names, rename_tensors

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
"""Suffix of names that ONNX Runtime's quantiser makes -> short suffix; the first that fits is taken."""


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with equal initializers merged and names shortened.

    Initializers are equal if type, shape and every bit are; merged ones are called 'c0', 'c1' and so on.
    Constant nodes stay as they are. Names of tensors and nodes that end in a key of `SHORT_SUFFIXES` are
    shortened, whoever made them, unless the short name is in use. Inputs, outputs and tensors that bodies of
    nodes (If, Loop) read keep their names. The types of other tensors (`value_info`) are left out.
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
    """Merge equal initializers, in place: the first stays, under a new name such as 'c0'.

    Those whose names are in `fixed` are not merged; `used_names` are those that no new name may have.
    """
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
    """Return name -> short name for names with a suffix of `SHORT_SUFFIXES`, unless that is in use."""
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
