"""An engine on a right file with a fault behind it: what a file with the fault gives, the network run once.

Faults of results depend on the inputs and on what the right file gives, so that a small graph computes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
from onnx import helper

from conditional_faults import CHANGED
from remembered import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from mmdeploy_ext.engines import Backend

GIVEN = 'given'


class Right:
    """An engine that runs each input once.

    Attributes:
        backend: the open engine.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self._known = backend, {}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs, whose dict is the caller's."""
        key = digest(dict(feeds))
        if key not in self._known:
            self._known[key] = self.backend.infer(feeds)
        return dict(self._known[key])


class Behind:
    """The same with a fault behind an output.

    Attributes:
        metadata, computes_in: of the right file.
    """

    def __init__(self, right: Right, path: str, family: str, change: Callable[[Any, str], None]) -> None:
        """Put a fault, as `change(graph, family)` plants it, behind the output that it changes."""
        self.right, self.output = right, CHANGED[family]
        self.metadata, self.computes_in = right.backend.metadata, right.backend.computes_in
        self.session = onnxruntime.InferenceSession(
            _graph_behind(onnx.load(path), self.output, family, change).SerializeToString(),
            providers=['CPUExecutionProvider'],
        )

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the file with the fault."""
        outputs = self.right.infer(feeds)
        (wrong,) = self.session.run([self.output], {**feeds, GIVEN: outputs[self.output]})
        return {**outputs, self.output: wrong}


def _graph_behind(
    model: onnx.ModelProto, output: str, family: str, change: Callable[[Any, str], None]
) -> onnx.ModelProto:
    """Return a graph of the inputs of a model and one of its outputs, which gives that output changed."""
    (value,) = (one for one in model.graph.output if one.name == output)
    given = onnx.ValueInfoProto()
    given.CopyFrom(value)
    given.name = GIVEN
    inputs = {one.name for one in model.graph.input}
    defaults = [one for one in model.graph.initializer if one.name in inputs]
    node = helper.make_node('Identity', [GIVEN], [output])
    graph = helper.make_graph([node], 'behind', [*model.graph.input, given], [value], defaults)
    change(graph, family)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made)
    return made
