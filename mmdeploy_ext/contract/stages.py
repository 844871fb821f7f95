"""The chain of modules that a graph is made of, and the opset that it is written in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    import torch

DEFAULT_OPSET = 17
"""LayerNormalization is one operator from 17 on, and TensorRT 10 gets GridSample of 20 wrong."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One module of the chain that a graph is made of; exported alone, merged by tensor name.

    Attributes:
        name: prefix of its nodes in the merged graph.
        module: takes its inputs as positional tensors, returns a tensor or a tuple of tensors.
        inputs: names of its inputs: graph inputs or outputs of an earlier stage.
        outputs: names of its outputs.
        exporter: 'torchscript' pins it; '' follows the option (post-processing has no other exporter).
        passes: model -> (model, whether it changed), over the merged graph.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exporter: str = ''
    passes: tuple[Callable[[onnx.ModelProto], tuple[onnx.ModelProto, bool]], ...] = ()
