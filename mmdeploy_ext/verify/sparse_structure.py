"""Level 1 of a sparse backbone's proof: is the file what its model gives, and would its engine take it?"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.sparse import contract
from mmdeploy_ext.sparse.ir import differences
from mmdeploy_ext.sparse.libspconv import read, to_node_list, to_onnx
from mmdeploy_ext.verify.verdict import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.sparse.ir import SparseGraph

SHOWN = 3
"""Differences that a check's detail lists."""
UNCOMPARED = ('about', 'ir_version', 'onnx_package')
"""Keys of a stored node list that say how it was made, not what it is."""


def check_dialect(
    path: str, model: onnx.ModelProto, expected: SparseGraph, max_voxels: int | None = None
) -> tuple[list[Check], list[str]]:
    """Check a libspconv file.

    Args:
        path: of the file.
        model: its content.
        expected: the graph that config, checkpoint and options give.
        max_voxels: see `contract.check`.

    Returns:
        The checks, and what the contract warns of.
    """
    found = contract.check(model, max_voxels=max_voxels, name=path)
    wrong = [f'{entry.node or "file"}: {entry.rule}: {entry.message}' for entry in contract.errors(found)]
    notes = [
        f'contract: {entry.node or "file"}: {entry.message}'
        for entry in found
        if entry.severity == contract.WARNING
    ]
    count = f'{len(model.graph.node)} nodes by the rules of the engine'
    checks = [Check("contract of NVIDIA's engine", not wrong, _listed(wrong, count))]
    checks.extend(compare_node_lists(to_node_list(model), to_node_list(to_onnx(expected)), 'the model'))
    checks.append(_read_again(path, model, expected))
    return checks, _brief(notes)


def _brief(notes: list[str]) -> list[str]:
    more = [f'contract: {len(notes) - SHOWN} more warnings, see tools/onnx/graph.py check-scn']
    return notes if len(notes) <= SHOWN else notes[:SHOWN] + more


def _read_again(path: str, model: onnx.ModelProto, expected: SparseGraph) -> Check:
    """Check that the reader gives the graph that the writer was given (its weights in fp16)."""
    from mmdeploy_ext.errors import Mm2OnnxError

    title = 'read again, it is the traced graph'
    try:
        graph = read(path)
    except Mm2OnnxError as error:
        return Check(title, False, f'cannot be read: {error}')
    found = differences(graph, half(expected))
    return Check(title, not found, _listed(found, f'{len(graph.nodes)} nodes, weights bit for bit'))


def half(graph: SparseGraph) -> SparseGraph:
    """Return the graph as a libspconv file holds it: weights in fp16, ranges as float32 holds them."""
    import dataclasses

    from mmdeploy_ext.sparse.ir import Add, SparseConvolution

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

    Args:
        found: of the file, `to_node_list`.
        expected: of the model, or a stored one of the reference exporter.
        what: where the latter comes from, for the titles.
    """
    checks = []
    for title, keys in (
        ('nodes', ('meta', 'inputs', 'outputs', 'nodes')),
        ('initializers', ('initializers',)),
    ):
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
    elif _are_lists(left, right):
        if len(left) != len(right):
            yield f'{where}: {len(left)} entries, expected {len(right)}'
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            name = one.get('name', index) if isinstance(one, dict) else index
            yield from _differing(one, other, f'{where}[{name}]')
    elif left != right and not _both_nan(left, right):
        yield f'{where}: {left!r}, expected {right!r}'


def _are_lists(left: Any, right: Any) -> bool:
    return isinstance(left, list) and isinstance(right, list)


def _both_nan(left: Any, right: Any) -> bool:
    return isinstance(left, float) and isinstance(right, float) and left != left and right != right


def _listed(wrong: Sequence[str], good: str) -> str:
    if not wrong:
        return good
    shown = '; '.join(itertools.islice(wrong, SHOWN))
    return shown + (f'; and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else '')


# ---- portable


def check_portable(path: str, model: onnx.ModelProto, expected: SparseGraph) -> list[Check]:
    """Check a portable file: valid, standard operators only, every weight of the folded model in it.

    Args:
        path: of the file.
        model: its content.
        expected: the folded graph.
    """
    return [_checker(model), _inference(model), _domains(model), _weights(model, expected)]


def _checker(model: onnx.ModelProto) -> Check:
    try:
        onnx.checker.check_model(model, full_check=False)
    except onnx.checker.ValidationError as error:
        return Check('onnx.checker', False, ' '.join(str(error).split())[:300])
    return Check('onnx.checker', True)


def _inference(model: onnx.ModelProto) -> Check:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return Check('strict shape inference', False, ' '.join(str(error).split())[:300])
    return Check('strict shape inference', True)


def _domains(model: onnx.ModelProto) -> Check:
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ('', 'ai.onnx')})
    versions = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    detail = f'{", ".join(foreign)} are not' if foreign else f'opset {versions.get("ai.onnx")}'
    return Check('standard operators only', not foreign, detail)


def _weights(model: onnx.ModelProto, expected: SparseGraph) -> Check:
    """Check that the values of every kernel and bias are in the file, whatever their layout."""
    stored = {_values(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    wanted = {}
    for node in expected.convolutions():
        wanted[f'{node.name}.weight'] = _values(node.weight)
        if node.bias is not None:
            wanted[f'{node.name}.bias'] = _values(node.bias)
    missing = [name for name, values in wanted.items() if values not in stored]
    return Check(
        'weights are those of the checkpoint', not missing, _listed(missing, f'{len(wanted)} tensors')
    )


def _values(array: np.ndarray) -> str:
    """Return a hash of the sorted values."""
    return hashlib.sha256(np.sort(array.astype(np.float32), axis=None).tobytes()).hexdigest()
