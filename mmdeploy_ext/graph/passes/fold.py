"""Constant folding."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
from collections.abc import Iterator

import onnx

LARGEST_INPUT = 8192
LARGEST_OUTPUT = 512 * 512
"""Elements of the tensors that folding reads and writes; larger ones stay computed (onnxscript's limits)."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """How many nodes there were before and after."""

    before: int
    after: int


def fold(
    model: onnx.ModelProto, largest_input: int = LARGEST_INPUT, largest_output: int = LARGEST_OUTPUT
) -> tuple[onnx.ModelProto, Folded]:
    """Return a model in which constants are computed, and the number of nodes before and after.

    - Nodes whose inputs are all constants become initializers; shapes of fixed size count as constants.
      Nodes that nothing reads go, and local functions are inlined.
    - Not fired on random operators, inputs with a default (they can be fed) and tensors over the limits.

    Args:
        model: stays as it is; names of inputs and outputs stay.
        largest_input: elements of the largest constant that is read.
        largest_output: elements of the largest constant that is made.
    """
    from onnxscript import optimizer

    result = copy.deepcopy(model)
    for _ in range(len(model.graph.node)):
        before = len(result.graph.node)
        with suppress_output():
            result = optimizer.optimize(
                result, input_size_limit=largest_input, output_size_limit=largest_output
            )
        if len(result.graph.node) == before:
            break
    return result, Folded(len(model.graph.node), len(result.graph.node))


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
