"""Inner tensors as outputs."""

import copy
from collections.abc import Iterable

import onnx

from mmdeploy_ext.graph.io.checks import check_ordinary
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.passes.select import matching
from mmdeploy_ext.graph.run import typed_values


def insert_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a model that also gives inner tensors, after the outputs that it has.

    The names are of tensors that nodes make, or patterns such as '/head/*'. Does not fire on tensors that are
    outputs already. The outputs that were there keep their values.

    Raises:
        UsageError: an unknown tensor, a pattern that no tensor fits, an input or a constant.
    """
    check_ordinary(model)
    index = Index(model)
    wanted = [name for pattern in names for name in matching(index, pattern)]
    new = [name for name in dict.fromkeys(wanted) if name not in index.outputs]
    result = copy.deepcopy(model)
    result.graph.output.extend(typed_values(index, new))
    return result
