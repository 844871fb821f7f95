"""Faster dynamo exports: no needless decompositions, and translations read once."""

import contextlib
import copy
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from mmdeploy_ext.upstream.compat.import_hook import patched

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
