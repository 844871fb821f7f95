"""Constant folding."""

import contextlib
import copy
import io
import logging
from collections.abc import Iterator

import onnx

LIMITS = dict(input_size_limit=8192, output_size_limit=512 * 512)
"""Elements of the tensors that folding reads and writes; larger ones stay computed (onnxscript's limits)."""


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which constants are computed; names of inputs and outputs stay.

    - Nodes whose inputs are all constants become initializers; shapes of fixed size count as constants.
      Nodes that nothing reads go, and local functions are inlined.
    - Not fired on random operators, inputs with a default (they can be fed) and tensors over the limits.
    """
    from onnxscript import optimizer

    result = copy.deepcopy(model)
    for _ in range(len(model.graph.node)):
        before = len(result.graph.node)
        with suppress_output():
            result = optimizer.optimize(result, **LIMITS)
        if len(result.graph.node) == before:
            break
    return result


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Keep a library's prints and log lines off the console."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
