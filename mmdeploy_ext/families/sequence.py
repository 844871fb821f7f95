"""What a family of models of frames gives to the shared machinery: streams with a memory, sweeps without."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.contract.stages import DEFAULT_OPSET
from mmdeploy_ext.families.base import Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import onnx
    import torch

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Stepper, Sweep


@dataclasses.dataclass(frozen=True)
class SequenceOptions:
    """What the user chooses about the graphs of a streaming model.

    Attributes:
        contract: 'deploy' (three graphs, state in the last LiDAR frame) or 'fork' (one graph, global state).
        fork_version: '1.0' (12 inputs, absolute time in float64) or '1.1' (11 inputs, ages in float32).
        fork_img2lidar: 'token' for 1xTx4x4 or 'depth' for 1xTxDx4x4, as existing consumers feed it.
        layers: 'all' decoder layers or the 'last' one.
        precision: 'fp32' or 'fp16'.
        fp16_io: inputs and outputs of features are float16 too; False keeps all of them float32.
        keep_fp32: patterns of nodes that stay float32 in float16 files, besides those that always do.
        opset: the opset in the files; 0 until the model is known, see `deploy.resolve_opset`.
        exporter: 'torchscript' or 'dynamo'.
        simplify: run onnxslim over the results.
    """

    contract: str = 'deploy'
    fork_version: str = '1.0'
    fork_img2lidar: str = 'token'
    layers: str = 'all'
    precision: str = 'fp32'
    fp16_io: bool = False
    opset: int = DEFAULT_OPSET
    exporter: str = 'torchscript'
    simplify: bool = False
    keep_fp32: tuple[str, ...] = ()
    dynamic: ClassVar[bool] = False
    grid_sample: ClassVar[str] = 'operator'
    dynamic_batch: ClassVar[bool] = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types (what the metadata keeps)."""
        content = dataclasses.asdict(self)
        kept = list(content.pop('keep_fp32'))
        return {**content, 'keep_fp32': kept} if kept else content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SequenceOptions:
        """Rebuild from `to_json`; keys that are not options are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in content.items() if key in names}
        return cls(**{**known, 'keep_fp32': tuple(known.get('keep_fp32', ()))})


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a model of frames, before it is exported.

    Attributes:
        name: file stem, e.g. 'pts_head_memory'; the metadata's `form`.
        module: takes the spec's inputs as positional tensors, returns a tuple in the order of its outputs;
            None where there is a `model`.
        spec: its contract.
        example: input name -> tensor that is traced.
        model: the finished graph of a part that no exporter of torch can trace, or None.
    """

    name: str
    module: torch.nn.Module | None
    spec: GraphSpec
    example: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    model: onnx.ModelProto | None = None


class SequenceFamily(Family):
    """Export, references and runner of one family of models of frames.

    Attributes:
        compared: outputs that are compared with a dump; empty means all of the last graph.
        contracts: what its export can promise: 'deploy', and 'fork' where users have code for another one.
        dump_suffixes: prefix of a dumped tensor's name -> what its file name ends in.
        dump_names: tensors that dump mode has; empty where that is not known before a frame has run.
        bars: what its deploy contract is held to in a benchmark, see `benchmark.streams.held_to`.
        bars_of: the model and machine that the bars were set for.
    """

    contracts: ClassVar[tuple[str, ...]]
    compared: ClassVar[tuple[str, ...]] = ()
    dump_suffixes: ClassVar[dict[str, str]] = {}
    dump_names: ClassVar[tuple[str, ...]] = ()
    bars: ClassVar[tuple[tuple[str, str, float], ...]] = ()
    bars_of: ClassVar[str] = ''

    @abc.abstractmethod
    def check(self, cfg: Any, options: SequenceOptions) -> None:
        """Refuse, by name, what cannot be exported; runs before the weights load."""

    @abc.abstractmethod
    def graphs(self, model: torch.nn.Module, options: SequenceOptions) -> list[Graph]:
        """Return the graphs of a contract, in the order in which a frame goes through them."""

    @abc.abstractmethod
    def frame(self, data: Mapping[str, Any]) -> Frame | Sweep:
        """Return one collated sample of the test loader (batch 1) as a frame."""

    @abc.abstractmethod
    def reference(self, model: torch.nn.Module) -> Stepper:
        """Return the unpatched PyTorch model as a stepper."""

    @abc.abstractmethod
    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """Return exported files on an engine as a stepper.

        Args:
            paths: the files of one export.
            engine: options of `build_backend` (`engine`, `providers`, `threads`, `graph_optimization`, ...).
        """

    @abc.abstractmethod
    def timed_methods(self, model: torch.nn.Module) -> dict[str, list[tuple[object, str]]]:
        """Return the functions that make up the parts of a sample, for the benchmark: part -> (owner, name).

        Parts have the names of `graph_seconds` of its runner; what no function counts is the head.
        """

    @abc.abstractmethod
    def result(self, detections: Detections3D) -> dict[str, Any]:
        """Return detections as the entry of one sample in the test loop's results."""

    @abc.abstractmethod
    def dump_tensors(self, model: torch.nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return what dump mode writes for one frame: name -> array."""

    @abc.abstractmethod
    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame | Sweep:
        """Return the frame that a dump was made from.

        Raises:
            DataError: the dump lacks a tensor that is needed.
        """
