"""INT8 for dense graphs by NNCF, for OpenVINO: NNCF chooses ranges, bias correction and Q/DQ places.

ONNX Runtime runs the file, but fuses less.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.errors import EngineError, InferenceError
from mmdeploy_ext.exporting.int8 import tracked
from mmdeploy_ext.exporting.int8.dense import INFERRED_KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from types import ModuleType

    import numpy as np

    from mmdeploy_ext.exporting.int8.dense_layers import DenseGraph


MOVES = (
    'Cast', 'Concat', 'Expand', 'Flatten', 'Gather', 'Identity', 'MaxPool', 'Pad', 'Relu', 'Reshape',
    'Resize', 'Shape', 'Slice', 'Split', 'Squeeze', 'Tile', 'Transpose', 'Unsqueeze',
)  # fmt: skip
"""Operators that NNCF quantises only if their input is; ignoring them stops it."""


class NncfQuantiser:
    """Quantises layers of a float model with NNCF, like `dense.DenseQuantiser`.

    Each call of `network` runs all batches: NNCF's ranges depend on the layers.
    """

    def __init__(self, graph: DenseGraph, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self.graph, self._nncf, self._batches = graph, require_nncf(), _TrackedBatches(batches)

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The whole network with these layers in INT8, and later operators with only INT8 inputs."""
        model = copy.deepcopy(self.graph.network)
        if not layers:
            return model
        nncf = self._nncf
        input_names = [value.name for value in model.graph.input]
        dataset = nncf.Dataset(self._batches, lambda batch: {name: batch[name] for name in input_names})
        # NNCF would quantise every operator that its CPU back end has codes for, coordinates among them: the
        # toy RT-DETR, with sampling points by sums and products, fell from 0.569 to 0.192 box AP
        int8_nodes = set(self.graph.int8_nodes(layers))
        float_nodes = [
            node.name
            for node in model.graph.node
            if node.op_type not in MOVES and node.name not in int8_nodes
        ]
        try:
            with suppress_output():
                quantised = nncf.quantize(
                    model,
                    dataset,
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=max(len(self._batches), 1),
                    ignored_scope=nncf.IgnoredScope(names=float_nodes),
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise InferenceError(f'NNCF {nncf.__version__} failed: {error}') from error
        for entry in [entry for entry in quantised.metadata_props if entry.key == INFERRED_KEY]:
            quantised.metadata_props.remove(entry)
        return quantised


def require_nncf() -> ModuleType:
    """Import NNCF without telemetry; EngineError: it is not installed."""
    os.environ.setdefault('NNCF_CI', '1')  # disables its telemetry
    try:
        with suppress_output():
            import nncf
    except ImportError as error:
        raise EngineError(
            f'NNCF is not installed ({error}); install it with: pip install openvino nncf'
        ) from error
    return nncf


class _TrackedBatches:
    def __init__(self, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return tracked(self._batches, 'calibrating')
