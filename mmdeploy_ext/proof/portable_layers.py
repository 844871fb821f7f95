"""What every convolution of a portable file gives on ONNX Runtime: the same file, inner tensors shown."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.runtime.scn.model import ScnOnnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


def layer_tensor(node: str) -> str:
    """Return the name of a node's output in a portable file."""
    return f'{node}.out'


class PortableLayers:
    """A second session, of the file with the outputs of its convolutions as outputs of the graph.

    The first one stays as it is: what is shown cannot be fused, so the two may differ in last bits.
    """

    def __init__(self, model: onnx.ModelProto, nodes: list[str], threads: int) -> None:
        """Open the session.

        Args:
            model: the file's content.
            nodes: names of convolutions; those that the file lacks give nothing.
            threads: of ONNX Runtime.
        """
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        there = {name for node in model.graph.node for name in node.output}
        self.nodes = [node for node in nodes if layer_tensor(node) in there]
        shown.graph.output.extend(
            onnx.helper.make_tensor_value_info(layer_tensor(node), onnx.TensorProto.FLOAT, None)
            for node in self.nodes
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'layers.onnx'
            path.write_bytes(shown.SerializeToString())
            self.engine = ScnOnnx(path, threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return convolution's name -> (M, C), or (M + 1, C) with its row of zeros (`sparse.portable`)."""
        found = self.engine.session.run(feeds)
        return {node: found[layer_tensor(node)] for node in self.nodes}
