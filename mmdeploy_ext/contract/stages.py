"""A graph before its export: a chain of modules, its contract, and the opset it is written in."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    import torch

    from mmdeploy_ext.contract.spec import GraphSpec

DEFAULT_OPSET = 17
"""LayerNormalization is one operator from 17 on, and TensorRT 10 gets GridSample of 20 wrong."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One module of the chain that a graph is made of.

    Each is exported by itself; the graphs are merged by the names of tensors.

    Attributes:
        name: what stands with a '/' before the names of its nodes and inner tensors in the merged graph; ''
            for the '/' alone.
        module: takes its inputs as positional tensors, returns a tensor or a tuple of tensors; call `eval()`
            on it before an export.
        inputs: names of its inputs: graph inputs or outputs of an earlier stage.
        outputs: names of its outputs.
        exporter: 'torchscript' or 'dynamo' if the stage needs that one; '' takes the user's choice.
        passes: model -> (model, whether it changed), which run on the graph of all stages after the merge.
        varying: outputs that a later stage takes, with as many rows (axis 1) as there are results; this axis
            is dynamic even in a graph of a fixed size.
        operators: form in which registered operators are written, see `exporting.ops.operator.operators_as`;
            '' for the form that is chosen around the export.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exporter: str = ''
    passes: tuple[Callable[[onnx.ModelProto], tuple[onnx.ModelProto, bool]], ...] = ()
    varying: tuple[str, ...] = ()
    operators: str = ''


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a model, before it is exported.

    Attributes:
        name: the metadata's `form`; file stem in a folder of graphs, e.g. 'pts_head_memory'.
        module: takes the spec's inputs as positional tensors, returns a tuple in the order of its outputs;
            None if there is a `model`, or if `make` gives the modules.
        spec: its contract.
        example: input name -> tensor that is traced; empty if samples are traced, or if there is a `model`.
        model: the finished graph of a part that no exporter of torch can trace, which counts in place of all
            modules; or None.
        make: returns the chain of modules that the graph is made of, which then counts in place of `module`;
            None if there is no such chain.
    """

    name: str
    module: torch.nn.Module | None
    spec: GraphSpec
    example: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    model: onnx.ModelProto | None = None
    make: Callable[[], Sequence[Stage]] | None = None

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Return the chain of modules; it is empty for a finished graph."""
        if self.make is not None:
            return tuple(self.make())
        if self.module is None:
            return ()
        return (Stage('', self.module, tuple(self.spec.input_names), tuple(self.spec.output_names)),)
