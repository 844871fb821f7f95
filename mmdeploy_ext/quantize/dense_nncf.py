"""INT8 for dense graphs by NNCF, for OpenVINO: its own ranges, bias correction and places of Q/DQ pairs.

NNCF works on the ONNX graph here, so the file keeps names and metadata and OpenVINO reads it as any other.
ONNX Runtime runs it too, but fuses less of it than of a file of its own quantiser: biases stay float.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.core.errors import EngineError, InferenceError
from mmdeploy_ext.graph.passes.simplify import suppress_output
from mmdeploy_ext.quantize.calibrate import tracked
from mmdeploy_ext.quantize.dense import INFERRED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from types import ModuleType

    import numpy as np

    from mmdeploy_ext.quantize.dense_layers import DenseGraph


MOVES = (
    'Cast', 'Concat', 'Expand', 'Flatten', 'Gather', 'Identity', 'MaxPool', 'Pad', 'Relu', 'Reshape',
    'Resize', 'Shape', 'Slice', 'Split', 'Squeeze', 'Tile', 'Transpose', 'Unsqueeze',
)  # fmt: skip
"""Operators that NNCF quantises only where their input is; naming them would stop it before them."""


class NncfQuantiser:
    """Quantises layers of a graph with NNCF; the counterpart of `DenseQuantiser`.

    Every call of `network` goes through the batches (input name -> array, of which what the network does not
    take is left out) again: NNCF's ranges depend on what is quantised.
    """

    def __init__(self, graph: DenseGraph, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self.graph, self._nncf, self._images = graph, require_nncf(), _Tracked(batches)

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with these layers in INT8; without any, the float network."""
        model = copy.deepcopy(self.graph.network)
        if not layers:
            return model
        nncf = self._nncf
        needed = [value.name for value in model.graph.input]
        data = nncf.Dataset(self._images, lambda batch: {name: batch[name] for name in needed})
        try:
            with suppress_output():
                found = nncf.quantize(
                    model,
                    data,
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=max(len(self._images), 1),
                    ignored_scope=nncf.IgnoredScope(names=self._float_nodes(layers)),
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise InferenceError(f'NNCF {nncf.__version__} failed: {error}') from error
        for entry in [entry for entry in found.metadata_props if entry.key == INFERRED[0]]:
            found.metadata_props.remove(entry)
        return found

    def _float_nodes(self, layers: Sequence[str]) -> list[str]:
        """Return what stays float: all arithmetic but the layers and what is INT8 between them.

        NNCF would quantise every operator that its CPU back end has codes for, coordinates among them: the
        toy RT-DETR, whose sampling points are sums and products, fell from 0.569 to 0.192 box AP.
        """
        wanted = set(self.graph.int8_nodes(layers))
        return [
            node.name
            for node in self.graph.network.graph.node
            if node.op_type not in MOVES and node.name not in wanted
        ]


def require_nncf() -> ModuleType:
    """Import NNCF with its telemetry off; an EngineError says how to install it."""
    os.environ.setdefault('NNCF_CI', '1')  # turns its telemetry off
    try:
        with suppress_output():
            import nncf
    except ImportError as error:
        raise EngineError(
            f'NNCF is not installed ({error}); install it with: pip install openvino nncf'
        ) from error
    return nncf


class _Tracked:
    """Batches with a length and a progress bar."""

    def __init__(self, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return tracked(self._batches, 'calibrating')
