"""What makes an export by the dynamo exporter quick: work left out that gives nothing.

Programs of torch.export that need no decomposition: their in-place operators become functional ones.
`torch.onnx.export` has every program decomposed, which traces it twice more; with dynamic axes that is half
of the time of an export. Of operators that the exporter translates, a program is the same without.

Its translations are read once per process instead of once per stage: torch 2.13 parses the sources of
onnxscript's 500 functions at every `torch.onnx.export`: 0.5 s of CPU time, most of what a small stage takes.
"""

import contextlib
import copy
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from mmdeploy_ext.compat.import_hook import patched

aten = torch.ops.aten
SAME: dict[Any, tuple[Any, Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    aten.to.dtype: (aten._to_copy.default, lambda x, dtype, *_: ((x,), dict(dtype=dtype))),
    aten.__and__.Tensor: (aten.bitwise_and.Tensor, lambda x, other: ((x, other), {})),
    aten.__or__.Tensor: (aten.bitwise_or.Tensor, lambda x, other: ((x, other), {})),
    aten.rsub.Scalar: (aten.sub.Tensor, lambda x, other: ((other, x), {})),
}
"""Operator that is not translated -> one that is, and from the arguments of the first to those of the second:
what a decomposition would give."""
LEFT_OUT = frozenset({aten._assert_tensor_metadata.default, aten._assert_scalar.default})
"""The exporter removes them."""


_translations: dict[tuple[int, ...], Any] = {}
"""Opset, if one was asked for -> the registry of its translations."""


@contextlib.contextmanager
def translations_read_once() -> Iterator[None]:
    """Inside the block each export gets a registry of its own, filled from one that was read before."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = ONNXRegistry.from_torchlib

    def from_torchlib(cls: type[ONNXRegistry], **opset: int) -> ONNXRegistry:
        key = (*opset.values(),)
        if key not in _translations:
            _translations[key] = read(**opset)
        registry = copy.copy(_translations[key])
        registry.functions = {target: [*known] for target, known in registry.functions.items()}
        return registry

    with patched(ONNXRegistry, from_torchlib=classmethod(from_torchlib)):
        yield


@contextlib.contextmanager
def decomposed_where_needed(translated: Container[Any]) -> Iterator[None]:
    """Inside the block `ExportedProgram.run_decompositions` returns a program that needs none.

    `translated` are operators that the exporter knows beside those of PyTorch.
    """
    from onnxscript.function_libs.torch_lib.registration import default_registry

    def known(target: Any) -> bool:
        if not isinstance(target, torch._ops.OpOverload):
            return not isinstance(target, torch._ops.OperatorBase)  # of sizes, not of tensors
        name = f'{target._schema.name}.{target._overloadname}'.removesuffix('.default')
        return name in default_registry or target in translated or target in LEFT_OUT

    decompose = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, *args: Any, **kwargs: Any) -> ExportedProgram:
        functional = make_functional(program.graph_module, known)
        return program if functional else decompose(program, *args, **kwargs)

    with patched(ExportedProgram, run_decompositions=run):
        yield


def make_functional(module: torch.fx.GraphModule, known: Callable[[Any], bool]) -> bool:
    """Replace in-place operators and those of `SAME`, in place, where that is sure to change nothing.

    Return whether the graph is functional and all of its operators are `known` to be translated.
    """
    calls = [node for node in module.graph.nodes if node.op == 'call_function']
    twins = {node: _functional(node.target) for node in calls if _writes(node.target)}
    new = {node: twins.get(node, SAME.get(node.target, (node.target,))[0]) for node in calls}
    if (
        None in new.values()
        or not all(map(known, new.values()))
        or not all(_owned(node.args[0]) for node in twins)
        or any(node.kwargs for node in calls if node.target in SAME)
    ):
        return False
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    for node, target in new.items():
        if node.target in SAME:
            node.args, node.kwargs = SAME[node.target][1](*node.args)
        node.target = target
    for node in twins:
        node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, at=place[node]: place[user] > at)
    module.graph.lint()
    module.recompile()
    return True


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _functional(target: torch._ops.OpOverload) -> Any:
    """Return the operator that gives what an in-place one writes into its first argument; None without."""
    name = target._schema.name.split('::')[1]
    written = [argument.name for argument in target._schema.arguments if argument.is_write]
    if not name.endswith('_') or written != [target._schema.arguments[0].name]:
        return None
    twin = getattr(getattr(torch.ops, target.namespace), name.removesuffix('_'), None)
    return getattr(twin, target._overloadname, None)


def _owned(node: Any) -> bool:
    """Whether a tensor is the fresh result of an operator, and nothing is a view of it."""
    fresh = node.op == 'call_function' and isinstance(node.target, torch._ops.OpOverload)
    return fresh and not any(map(_is_view, (node, *node.users)))


def _is_view(node: torch.fx.Node) -> bool:
    """Whether a call may return memory of its arguments; an in-place operator returns what it wrote."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    return not schema.is_mutable and any(returned.alias_info is not None for returned in schema.returns)
