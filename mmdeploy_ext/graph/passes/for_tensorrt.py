"""Make a graph one that TensorRT reads as it is meant: inputs with a default become ordinary inputs.

TensorRT's parser takes an input that has an initializer for a constant, so that feeding it would do nothing.
The runtime feeds the default instead (`default_feeds`). Needs onnx only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.metadata import PREFIX, Metadata
from mmdeploy_ext.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGES = ('decode/*', 'postprocess/*')
"""Names of the nodes that turn outputs of the network into boxes; in float16 a pixel near 608 is 0.5 wide."""


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without defaults of inputs.

    Fires on initializers that are graph inputs too. Does not fire on other initializers. A second run
    changes nothing.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    fed = {value.name for value in result.graph.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in fed]
    if len(kept) < len(result.graph.initializer):
        result.graph.ClearField('initializer')
        result.graph.initializer.extend(kept)
    return result


def default_feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return input -> default of all inputs that have one."""
    fed = {value.name for value in model.graph.input}
    return {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in fed
    }


def spec_of(model: onnx.ModelProto) -> GraphSpec:
    """Return the spec that a file of this project states; of another file, its inputs and outputs."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}spec' in props and f'{PREFIX}family' in props:
        try:
            return Metadata.from_props(props).spec
        except ValueError:
            pass  # a file that states less: what its graph says is enough here
    sides = (model.graph.input, model.graph.output)
    inputs, outputs = (tuple(map(_tensor, values)) for values in sides)
    return GraphSpec(model.graph.name or 'graph', inputs, outputs)


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    axes = tuple(
        size.dim_value if size.HasField('dim_value') else size.dim_param or f'{value.name}_{axis}'
        for axis, size in enumerate(kind.shape.dim)
    )
    return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, axes)


def stage_patterns(model: onnx.ModelProto) -> list[str]:
    """Return the patterns of `STAGES` that fit a node of the model: what stays float32 by default."""
    names = [node.name for node in model.graph.node]
    return [pattern for pattern in STAGES if any(name.startswith(pattern[:-1]) for name in names)]


def broadcast_default(default: np.ndarray, shape: Mapping[int, int]) -> np.ndarray:
    """Return a default widened to the sizes that open axes have in this run (axis -> size)."""
    wanted = [shape.get(axis, size) for axis, size in enumerate(default.shape)]
    return np.ascontiguousarray(np.broadcast_to(default, wanted))
