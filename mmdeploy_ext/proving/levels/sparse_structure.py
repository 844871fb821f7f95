"""Level 1 of a sparse backbone's proof: is the file what its model gives, and would its engine take it?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.violations import WARNING, errors
from mmdeploy_ext.graph.signature import GraphDifference
from mmdeploy_ext.proving.levels.structure import check_inference, check_valid
from mmdeploy_ext.proving.results import Check
from mmdeploy_ext.sparse import libspconv_contract
from mmdeploy_ext.sparse.ir import Add, SparseConvolution, differences
from mmdeploy_ext.sparse.libspconv import read, to_node_list, to_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.sparse.ir import SparseGraph

SHOWN = 3
"""Differences that a check's detail lists."""
UNCOMPARED = ('about', 'ir_version', 'onnx_package')
"""Keys of a stored node list that say how it was made, not what it is."""


def check_dialect(
    path: str, model: onnx.ModelProto, max_voxels: int | None = None
) -> tuple[list[Check], list[str]]:
    """Check that the engine of the dialect would take a file as it is meant; return what it warns of, too."""
    found = libspconv_contract.check(model, max_voxels=max_voxels, name=path)
    wrong = [f'{entry.node or "file"}: {entry.rule}: {entry.message}' for entry in errors(found)]
    warnings = [entry for entry in found if entry.severity == WARNING]
    notes = [f'contract: {entry.node or "file"}: {entry.message}' for entry in warnings[:SHOWN]]
    if len(warnings) > SHOWN:
        more = f'{len(warnings) - SHOWN} more warnings'
        notes.append(f'contract: {more}, see {tool("graph")} check-scn')
    count = f'{len(model.graph.node)} nodes by the rules of the engine'
    return [Check("contract of NVIDIA's engine", not wrong, _listed(wrong, count))], notes


def dialect_differences(path: str, model: onnx.ModelProto, expected: SparseGraph) -> list[GraphDifference]:
    """Return where a libspconv file is not what its model gives: names and order count, as for the engine.

    So does where the reader gives another graph than the writer was given (its weights in fp16).
    """
    lists = to_node_list(model), to_node_list(to_onnx(expected))
    keys = [key for key in dict.fromkeys([*lists[0], *lists[1]]) if key not in UNCOMPARED]
    found = [line for key in keys for line in _differing(lists[0].get(key), lists[1].get(key), key)]
    try:
        found += differences(read(path), half(expected))
    except Mm2OnnxError as error:
        found.append(f'file: cannot be read: {error}')
    found += [
        f'function {function.name}: no file of the dialect has functions' for function in model.functions
    ]
    found += [
        f'{tensor.values.name}: is a sparse initializer, which the engine does not read'
        for tensor in model.graph.sparse_initializer
    ]
    lines = (line.partition(': ') for line in found)
    return [GraphDifference('node', where, '', detail) for where, _, detail in lines]


def half(graph: SparseGraph) -> SparseGraph:
    """Return the graph as a libspconv file holds it: weights in fp16, ranges as float32 holds them."""

    def rounded(node: Any) -> Any:
        changes: dict[str, Any] = {}
        if isinstance(node, SparseConvolution | Add) and node.input_range is not None:
            changes['input_range'] = float(np.float32(node.input_range))
        if isinstance(node, SparseConvolution):
            changes.update(weight=node.weight.astype(np.float16), bias=node.bias.astype(np.float16))
            if node.weight_ranges is not None:
                changes['weight_ranges'] = np.asarray(node.weight_ranges, np.float32)
        return dataclasses.replace(node, **changes) if changes else node

    return dataclasses.replace(graph, nodes=tuple(map(rounded, graph.nodes)))


def compare_node_lists(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> list[Check]:
    """Compare two node lists: everything but the version of the onnx package that wrote them.

    `what` says in the titles where the expected one comes from.
    """
    checks, parts = [], dict(nodes=('meta', 'inputs', 'outputs', 'nodes'), initializers=('initializers',))
    for title, keys in parts.items():
        wrong = [line for key in keys for line in _differing(found.get(key), expected.get(key), key)]
        size = len(found.get(keys[-1], ()))
        detail = f'{size} {title}' + (' with name, shape and SHA-256' if title == 'initializers' else '')
        checks.append(Check(f'{title} equal those of {what}', not wrong, _listed(wrong, detail)))
    return checks


def _differing(left: Any, right: Any, where: str) -> Iterator[str]:
    """Yield what differs between two JSON values, innermost first."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in dict.fromkeys([*left, *right]):
            if key in UNCOMPARED:
                continue
            if key not in left or key not in right:
                yield f'{where}.{key}: {"missing" if key not in left else "not expected"}'
            else:
                yield from _differing(left[key], right[key], f'{where}.{key}')
    elif isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            yield f'{where}: {len(left)} entries, expected {len(right)}'
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            name = one.get('name', index) if isinstance(one, dict) else index
            yield from _differing(one, other, f'{where}[{name}]')
    elif left != right and (left == left or right == right):  # NaN on both sides is equal
        yield f'{where}: {left!r}, expected {right!r}'


def _listed(wrong: Sequence[str], good: str) -> str:
    if not wrong:
        return good
    return '; '.join(wrong[:SHOWN]) + (f'; and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else '')


def check_portable(model: onnx.ModelProto) -> list[Check]:
    """Check that a portable file is valid, with standard operators only."""
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ('', 'ai.onnx')})
    versions = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    detail = f'{", ".join(foreign)} are not' if foreign else f'opset {versions.get("ai.onnx")}'
    standard = Check('standard operators only', not foreign, detail)
    return [check_valid(model), check_inference(model), standard]
