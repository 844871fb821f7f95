"""Concatenate models that pass tensors to each other by name.

`onnx.compose.merge_models` takes two at a time, and makes two inputs of one that both read (`a/x`, `b/x`).
"""

import copy
from collections.abc import Mapping, Sequence

import onnx

from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.graph.io.checks import check_ordinary
from mmdeploy_ext.graph.io.index import all_nodes, did_you_mean, free_name, refill
from mmdeploy_ext.graph.io.operators import opsets_of
from mmdeploy_ext.graph.io.types import shape, text
from mmdeploy_ext.graph.part import drop_metadata
from mmdeploy_ext.graph.passes.rename import rename_nodes, rename_tensors


def _rename_graph(graph: onnx.GraphProto, prefix: str, kept: set[str]) -> None:
    """Put `prefix` before every node and value name that is not in `kept`, sub-graphs included."""

    def prefixed(name: str) -> str:
        return f'{prefix}/{name.lstrip("/")}' if name else name

    rename_tensors(graph, lambda name: name if name in kept else prefixed(name))
    rename_nodes(graph, prefixed)


def concatenate(
    models: Sequence[onnx.ModelProto], prefixes: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Merge models into one: an input of a model is the output of an earlier model with the same name.

    Inputs that no earlier model gives become graph inputs; models may share them. One model alone is
    renamed likewise, so that names do not depend on how many stages there are.

    Args:
        models: in the order of execution; the same opset and no functions.
        prefixes: one per model, put before the names of its nodes and inner values.
        outputs: of the merged graph.

    Raises:
        ExportError: the opsets differ, or an output is given by no model.
    """
    opsets = {tuple(sorted((one.domain, one.version) for one in model.opset_import)) for model in models}
    if len(opsets) > 1:
        raise ExportError(f'the stages were written with different opsets: {sorted(opsets)}')
    merged = copy.deepcopy(models[0])
    for field in ('node', 'initializer', 'input', 'output', 'value_info'):
        merged.graph.ClearField(field)
    given: dict[str, onnx.ValueInfoProto] = {}
    for model, prefix in zip(models, prefixes, strict=True):
        graph = copy.deepcopy(model.graph)
        _rename_graph(graph, prefix, {value.name for value in (*graph.input, *graph.output)})
        for value in graph.input:
            if value.name not in given:
                given[value.name] = value
                merged.graph.input.append(value)
        given.update((value.name, value) for value in graph.output)
        merged.graph.node.extend(graph.node)
        merged.graph.initializer.extend(graph.initializer)
        merged.ir_version = max(merged.ir_version, model.ir_version)
    missing = [name for name in outputs if name not in given]
    if missing:
        raise ExportError(f'outputs {missing} are given by no stage; there are {sorted(given)}')
    merged.graph.output.extend(given[name] for name in outputs)
    merged.graph.name = 'mm2onnx'
    return merged


def merge(
    models: Sequence[onnx.ModelProto],
    names: Sequence[str],
    *,
    connections: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Merge models of any origin: outputs of one feed the inputs of later ones.

    Args:
        models: in the order of execution.
        names: one per model, put before the names of its nodes and inner tensors; all different.
        connections: output of an earlier model -> input of a later one. Equal names connect by themselves.
        outputs: of the merged graph; None: every output that no later model takes.

    Raises:
        UsageError: names that are not there or not connected, several models that give the same name,
            tensors whose dtypes or shapes do not fit.
        ExportError: the opsets of a domain differ.
    """
    for model in models:
        check_ordinary(model)
    if len(set(names)) < len(names):
        raise UsageError(f'the models need different names, got {", ".join(names)}')
    models = _connected(models, connections or {})
    given: dict[str, onnx.TypeProto] = {}
    taken: set[str] = set()
    for model, name in zip(models, names, strict=True):
        taken |= _check_interface(model, name, given)
        given.update((value.name, value.type) for value in model.graph.output)
    for name in outputs or ():
        if name not in given:
            raise UsageError(f'--outputs {name}: no model gives it{did_you_mean(name, given)}')
    ends = [name for name in given if name not in taken] if outputs is None else outputs
    merged = concatenate(_same_opsets(models), names, ends)
    merged.functions.extend(_functions(models[1:], merged))
    drop_metadata(merged)
    return merged


def _connected(models: Sequence[onnx.ModelProto], connections: Mapping[str, str]) -> list[onnx.ModelProto]:
    """Rename inputs to the outputs that feed them."""
    given: set[str] = set()
    todo, found = dict(connections), []
    for model in models:
        inputs = {value.name for value in model.graph.input}
        mine = {entry: out for out, entry in connections.items() if entry in inputs and out in given}
        for out in mine.values():
            todo.pop(out, None)
        found.append(_renamed(model, mine) if mine else model)
        given |= {value.name for value in found[-1].graph.output}
    for out, entry in todo.items():
        inputs = {value.name for model in models for value in model.graph.input}
        missing = f'no later model has an input {entry!r}{did_you_mean(entry, inputs)}'
        if out not in given:
            missing = f'{out!r} is not an output{did_you_mean(out, given)}'
        raise UsageError(f'--connect {out} {entry}: {missing}')
    return found


def _renamed(model: onnx.ModelProto, inputs: Mapping[str, str]) -> onnx.ModelProto:
    """Give inputs other names; inner tensors that have these names make room."""
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    taken = ends | {name for node in all_nodes(model) for name in node.output}
    new = {**inputs, **{name: free_name(name, taken) for name in set(inputs.values()) - ends}}
    clash = next((name for entry, name in inputs.items() if name in ends and name != entry), None)
    if clash is not None:
        raise UsageError(f'a later model has an input or output {clash!r} already; rename one first')
    result = copy.deepcopy(model)
    rename_tensors(result.graph, lambda name: new.get(name, name))
    return result


def _check_interface(model: onnx.ModelProto, name: str, given: Mapping[str, onnx.TypeProto]) -> set[str]:
    """Return the inputs of a model that earlier ones give, after a look at their types."""
    taken = [value for value in model.graph.input if value.name in given]
    for value in taken:
        before = given[value.name]
        if not _fit(value.type, before):
            raise UsageError(
                f'{name} takes {value.name!r} as {text(value.type)}, but what an earlier model gives is '
                f'{text(before)}'
            )
    if twice := [value.name for value in model.graph.output if value.name in given]:
        raise UsageError(
            f'{name} and an earlier model both give {", ".join(twice)}; rename one first (graph.py rename)'
        )
    return {value.name for value in taken}


def _fit(here: onnx.TypeProto, there: onnx.TypeProto) -> bool:
    kinds = {kind.tensor_type.elem_type for kind in (here, there)} - {0}
    left, right = shape(here), shape(there)
    if left is None or right is None:
        return len(kinds) < 2
    fixed = [pair for pair in zip(left, right, strict=False) if all(isinstance(size, int) for size in pair)]
    return len(kinds) < 2 and len(left) == len(right) and all(one == other for one, other in fixed)


def _same_opsets(models: Sequence[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Let every model import the domains of all, so that one that another does not use is no difference."""
    everything: dict[str, int] = {}
    for model in reversed(models):
        everything.update(opsets_of(model))
    found = [copy.deepcopy(model) for model in models]
    for model in found:
        imports = sorted({**everything, **opsets_of(model)}.items())
        refill(model, opset_import=[onnx.helper.make_opsetid(*entry) for entry in imports])
    return found


def _functions(models: Sequence[onnx.ModelProto], merged: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """Return the functions that the merged model, made of the first, lacks."""
    known = {(entry.domain, entry.name): entry for entry in merged.functions}
    there = len(known)
    for function in (entry for model in models for entry in model.functions):
        if known.setdefault((function.domain, function.name), function) != function:
            raise UsageError(f'two models have different functions {function.domain}.{function.name}')
    return list(known.values())[there:]
