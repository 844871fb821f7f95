"""Concatenate models that pass tensors to each other by name.

`onnx.compose.merge_models` takes two at a time, and makes two inputs of one that both read (`a/x`, `b/x`);
its prefixes give the nodes of exporters two slashes (`network//backbone/Conv`) and inputs with a default
another name than their default.
"""

import copy
from collections.abc import Collection, Mapping, Sequence

import onnx

from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.graph.io.files import check_ordinary
from mmdeploy_ext.graph.io.index import all_nodes, did_you_mean, free_name, opsets_of, refill
from mmdeploy_ext.graph.io.types import shape, text
from mmdeploy_ext.graph.part import drop_metadata
from mmdeploy_ext.graph.passes.rename import rename_nodes, rename_tensors


def concatenate(
    models: Sequence[onnx.ModelProto], prefixes: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Merge models into one: an input of a model is the output of an earlier model with the same name.

    Inputs that no earlier model gives become graph inputs; models may share them, and the default that one of
    them states is that of all. The default of an input is left out where an earlier model gives the tensor.
    One model alone is renamed likewise, so that names do not depend on how many stages there are.

    Metadata and functions are those of the first model; functions of others are left out. The result is not
    checked: `files.save` refuses one in which two tensors have one name.

    Args:
        models: models in the order of execution, at least one, with the same opsets; they stay as they are.
        prefixes: one per model, put with '/' before the names of its nodes and inner values.
        outputs: names of the merged graph's outputs, which are outputs of the models, or inputs that are
            passed through.

    Raises:
        ExportError: the opsets differ, an output is the name of no model's output or input, or an input has
            two defaults.
    """
    opsets = {
        tuple(sorted((entry.domain, entry.version) for entry in model.opset_import)) for model in models
    }
    if len(opsets) > 1:
        raise ExportError(f'the stages were written with different opsets: {sorted(opsets)}')
    merged = copy.deepcopy(models[0])  # into which the others are put: it may have most of the weights
    graph = merged.graph
    _add_prefix(graph, prefixes[0])
    graph.ClearField('value_info')
    values = {value.name: value for value in (*graph.input, *graph.output)}
    produced = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for model, prefix in zip(models[1:], prefixes[1:], strict=True):
        added = copy.deepcopy(model.graph)
        _add_prefix(added, prefix)
        for value in added.input:
            if value.name not in values:
                values[value.name] = value
                graph.input.append(value)
        graph.initializer.extend(_new_constants(constants, added, produced))
        values.update((value.name, value) for value in added.output)
        produced.update(value.name for value in added.output)
        for field in ('node', 'sparse_initializer', 'quantization_annotation'):
            getattr(graph, field).extend(getattr(added, field))
        merged.ir_version = max(merged.ir_version, model.ir_version)
    missing = [name for name in outputs if name not in values]
    if missing:
        raise ExportError(f'outputs {missing} are given by no stage; there are {sorted(values)}')
    refill(graph, output=[values[name] for name in outputs])
    graph.name = 'mm2onnx'
    return merged


def _new_constants(
    constants: dict[str, onnx.TensorProto], graph: onnx.GraphProto, produced: Collection[str]
) -> list[onnx.TensorProto]:
    """Return the initializers of a graph that `constants` lacks, and add them to it by name.

    Defaults of what is `produced` are left out. ExportError: an input has another default in `constants`.
    """
    added = []
    for tensor in graph.initializer:
        if tensor.name in produced:
            continue
        if tensor.name not in constants:
            constants[tensor.name] = tensor
            added.append(tensor)
        elif constants[tensor.name] != tensor:
            raise ExportError(f'the input {tensor.name!r} has another default in another model')
    return added


def _add_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before every name but those of the graph's inputs and outputs, sub-graphs included."""
    ends = {value.name for value in (*graph.input, *graph.output)}

    def prefixed(name: str) -> str:
        return f'{prefix}/{name.lstrip("/")}' if name else name

    rename_tensors(graph, lambda name: name if name in ends else prefixed(name))
    rename_nodes(graph, prefixed)


def merge(
    models: Sequence[onnx.ModelProto],
    names: Sequence[str],
    *,
    connections: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Merge models of any origin: outputs of one feed the inputs of later ones.

    One output feeds inputs of two names only if one of these is renamed first.

    Args:
        models: models in the order of execution, at least one; they stay as they are.
        names: one per model, put before the names of its nodes and inner tensors; all different.
        connections: output of an earlier model -> input that it feeds in every later one; of several outputs
            for one input the last in this mapping that an earlier model gives feeds it. Equal names connect
            by themselves; None: names are equal wherever models are connected.
        outputs: names of the merged graph's outputs, at least one, in this order; a repeated one counts once.
            None for every output that no later model takes.

    Returns:
        The merged model, with the metadata of the first one but for this project's (`part.drop_metadata`). It
        is not checked further, see `concatenate`.

    Raises:
        UsageError: equal `names`, outputs that are not there, a connection that feeds no input, several
            models that give the same name, or one that gives the name of an input of an earlier one, tensors
            whose dtypes or shapes do not fit, those of inputs that models share, too; one function with two
            contents.
        ExportError: the opsets of a domain differ, or the defaults of an input.
        ModelFileError: a graph of the libspconv dialect.
    """
    for model in models:
        check_ordinary(model)
    if len(set(names)) < len(names):
        raise UsageError(f'the models need different names, got {", ".join(names)}; give them by --names')
    models = _connect(models, connections or {})
    produced: dict[str, onnx.TypeProto] = {}
    shared: dict[str, onnx.TypeProto] = {}
    consumed: set[str] = set()
    for model, name in zip(models, names, strict=True):
        for value in model.graph.input:
            if value.name in produced:
                consumed.add(value.name)
                _check_types(name, value, produced[value.name], 'gives')
            else:
                _check_types(name, value, shared.setdefault(value.name, value.type), 'takes')
        repeated = [value.name for value in model.graph.output if value.name in produced]
        if repeated:
            raise UsageError(
                f'{name} and an earlier model both give {", ".join(repeated)}; rename one first '
                f'(graph.py rename)'
            )
        inputs = {value.name for value in model.graph.input}
        late_sources = [value.name for value in model.graph.output if value.name in shared.keys() - inputs]
        if late_sources:
            raise UsageError(
                f'{name} gives {", ".join(late_sources)}, which is an input of an earlier model; rename '
                f'one first (graph.py rename)'
            )
        produced.update((value.name, value.type) for value in model.graph.output)
    for name in outputs or ():
        if name not in produced:
            raise UsageError(f'--outputs {name}: no model gives it{did_you_mean(name, produced)}')
    ends = [name for name in produced if name not in consumed] if outputs is None else dict.fromkeys(outputs)
    merged = concatenate(_with_same_opsets(models), names, list(ends))
    _add_functions(merged, models[1:])
    drop_metadata(merged)
    return merged


def _add_functions(merged: onnx.ModelProto, models: Sequence[onnx.ModelProto]) -> None:
    """Add the functions of models to the merged one, which has those of the first."""
    functions = {
        (function.domain, function.name, function.overload): function for function in merged.functions
    }
    for function in (function for model in models for function in model.functions):
        key = function.domain, function.name, function.overload
        if key not in functions:
            functions[key] = function
            merged.functions.append(function)
        if functions[key] != function:
            raise UsageError(f'two models have different functions {function.domain}.{function.name}')


def _connect(models: Sequence[onnx.ModelProto], connections: Mapping[str, str]) -> list[onnx.ModelProto]:
    """Rename inputs to the outputs that feed them."""
    produced: set[str] = set()
    replaced: dict[str, str] = {}
    pending, connected = dict(connections), []
    for model in models:
        inputs = {value.name for value in model.graph.input}
        feeding = {
            entry: output for output, entry in connections.items() if entry in inputs and output in produced
        }
        for output, entry in connections.items():
            if output in produced and entry in feeding:
                replaced[output] = feeding[entry]
        for output in feeding.values():
            pending.pop(output, None)
        connected.append(_rename_inputs(model, feeding) if feeding else model)
        produced |= {value.name for value in connected[-1].graph.output}
    for output, entry in pending.items():
        inputs = {value.name for model in models for value in model.graph.input}
        problem = f'no later model has an input {entry!r}{did_you_mean(entry, inputs)}'
        if output not in produced:
            problem = f'{output!r} is not an output{did_you_mean(output, produced)}'
        elif output in replaced:
            problem = f'{replaced[output]!r}, which is connected to it later, feeds it in every model'
        raise UsageError(f'--connect {output} {entry}: {problem}')
    return connected


def _rename_inputs(model: onnx.ModelProto, inputs: Mapping[str, str]) -> onnx.ModelProto:
    """Give inputs other names; inner tensors that have these names get another one."""
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    for entry, name in inputs.items():
        if name in ends and name != entry:
            raise UsageError(f'a later model has an input or output {name!r} already; rename one first')
    used = ends | {name for node in all_nodes(model) for name in node.output}
    new_names = {**inputs, **{name: free_name(name, used) for name in set(inputs.values()) - ends}}
    result = copy.deepcopy(model)
    rename_tensors(result.graph, lambda name: new_names.get(name, name))
    return result


def _check_types(model: str, value: onnx.ValueInfoProto, earlier: onnx.TypeProto, verb: str) -> None:
    """Refuse an input of a model whose dtype or shape is not that of the same tensor in an earlier model.

    `verb` is 'gives' if it is an output of that model, 'takes' if it is an input, too.
    """
    elements = {entry.tensor_type.elem_type for entry in (value.type, earlier)} - {0}
    input_shape, output_shape = shape(value.type), shape(earlier)
    fits = len(elements) < 2
    if fits and input_shape is not None and output_shape is not None:
        pairs = list(zip(input_shape, output_shape, strict=False))
        fixed = [pair for pair in pairs if all(isinstance(size, int) for size in pair)]
        fits = len(input_shape) == len(output_shape) and all(
            size == output_size for size, output_size in fixed
        )
    if not fits:
        raise UsageError(
            f'{model} takes {value.name!r} as {text(value.type)}, but what an earlier model {verb} is '
            f'{text(earlier)}'
        )


def _with_same_opsets(models: Sequence[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Let every model import the domains of all, so that one that another does not use is no difference."""
    opsets: dict[str, int] = {}
    for model in reversed(models):
        opsets.update(opsets_of(model))
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        imports = sorted({**opsets, **opsets_of(model)}.items())
        refill(model, opset_import=[onnx.helper.make_opsetid(*entry) for entry in imports])
    return copies
