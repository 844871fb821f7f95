"""Constant folding by onnxscript, and simplification by onnxslim with names and metadata put back."""

import copy

import onnx

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.errors import ExportError, one_line
from mmdeploy_ext.graphs.io.files import is_large
from mmdeploy_ext.graphs.io.index import refill

FOLDING_LIMITS = dict(input_size_limit=8192, output_size_limit=512 * 512)
"""Largest numbers of elements of tensors that folding reads and writes (onnxscript's names of them)."""


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which constants are computed; names of inputs and outputs stay.

    - Nodes of constants alone, and of fixed shapes, become initializers; unread nodes are dropped, local
      functions inlined.
    - onnxscript also drops Identity and Dropout, merges equal nodes and fuses some pairs, such as two
      Reshapes.
    - Not fired: inputs with a default, tensors over `FOLDING_LIMITS` (except a Transpose of a constant).
    """
    from onnxscript import optimizer

    inputs = {value.name for value in model.graph.input}
    places = [place for place, tensor in enumerate(model.graph.initializer) if tensor.name in inputs]
    result = copy.deepcopy(model)
    for place in reversed(places):
        del result.graph.initializer[place]
    for _ in range(len(model.graph.node)):
        before = len(result.graph.node)
        try:
            with suppress_output():
                result = optimizer.optimize(result, **FOLDING_LIMITS)
        except Exception as error:
            reason = f'{type(error).__name__}: {one_line(error)[:300]}'
            raise ExportError(f'onnxscript failed on the model ({reason}); is it valid ONNX?') from error
        if len(result.graph.node) == before:
            break
    result.graph.initializer.extend(model.graph.initializer[place] for place in places)
    return result


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    if is_large(model):
        raise ExportError(
            'onnxslim supports models of up to 2 GiB, and this one is larger; use fold, which covers '
            'most of it'
        )
    inputs = {value.name for value in model.graph.input}
    prepared = copy.deepcopy(model)
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    refill(prepared.graph, initializer=constants)
    try:
        with suppress_output():
            slim = onnxslim.slim(prepared)
    except Exception as error:
        raise ExportError(
            f'onnxslim failed on the model ({type(error).__name__}: {error}); try fold'
        ) from error
    # onnxslim goes through sets of symbols: its shapes of inner tensors have other names in each process
    refill(slim.graph, input=model.graph.input, value_info=())
    slim.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in inputs)
    keys = {entry.key for entry in slim.metadata_props}
    slim.metadata_props.extend(entry for entry in model.metadata_props if entry.key not in keys)
    graphs = model.graph, slim.graph
    types = [[value.type.tensor_type.elem_type for value in graph.output] for graph in graphs]
    names = [[value.name for value in graph.output] for graph in graphs]
    if names[0] != names[1] or types[0] != types[1]:
        raise ExportError(
            f'onnxslim changed the outputs: got {names[1]}, expected {names[0]} of the same types; try fold'
        )
    return slim
