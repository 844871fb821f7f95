"""From an ONNX model to an engine, through either TensorRT package; no GPU is needed for tensorrt-rtx."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import EngineError, ExportError
from mmdeploy_ext.engines.tensorrt.binding import dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.engines.tensorrt.package import Package

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of an input."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the strongly typed network.

    Attributes:
        name: the ONNX node that it was made from, or a name that TensorRT gave.
        kind: 'CONVOLUTION', 'MATRIX_MULTIPLY', ...
        outputs: dtype of each output, as numpy names it.
    """

    name: str
    kind: str
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Built:
    """A serialised engine and facts of its build.

    Attributes:
        layers: of the network; their dtypes are binding for the engine, which may fuse them.
        seconds: parsing and building.
    """

    data: bytes
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]
    seconds: float

    def layers_json(self) -> list[dict[str, Any]]:
        """Return the layers as plain JSON types."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Return kind of layer -> dtype -> number of layers."""
        found: dict[str, collections.Counter[str]] = {}
        for layer in self.layers:
            found.setdefault(layer.kind, collections.Counter()).update(layer.outputs[:1])
        return {kind: dict(counts) for kind, counts in sorted(found.items())}


def build(
    model: onnx.ModelProto,
    package: Package,
    architectures: Sequence[int] = (),
    profiles: Mapping[str, Profile] | None = None,
    *,
    tf32: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Built:
    """Build an engine.

    Args:
        model: its dtypes are what the engine computes in.
        package: that builds.
        architectures: to build for, all in one engine; () for the GPU at hand.
        profiles: input -> smallest, usual and largest shape; for every input with an open axis.
        tf32: let products of float32 round their factors to 10 bits, which TensorRT does by default.
        progress: called with the phase, the steps done and the steps of the phase.

    Raises:
        EngineError: the parser does not take a node; the message names it.
        ExportError: TensorRT refused or failed to build; the message is its own.
    """
    trt, log, start = package.module, package.logger(), time.perf_counter()
    builder = trt.Builder(log)
    if builder is None:
        raise EngineError(f'{package.name} could not start: {"; ".join(log.errors())}')
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise EngineError(_parser_message(parser, package))
    config = builder.create_builder_config()
    _configure(trt, config, architectures, tf32)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if progress is not None and hasattr(trt, 'IProgressMonitor'):
        config.progress_monitor = _monitor(trt, progress)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        reason = '; '.join(map(_plain, log.errors()[:3])) or 'it gave no reason'
        raise ExportError(f'{package.name} {package.version} cannot build it: {reason}')
    layers = tuple(_layer(network.get_layer(place)) for place in range(network.num_layers))
    seconds = time.perf_counter() - start
    return Built(bytes(serialised), layers, tuple(dict.fromkeys(log.warnings())), seconds)


def _network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network, which 10.x has to be asked for."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
    return 0 if typed is None else 1 << int(typed)


def _configure(trt: Any, config: Any, architectures: Sequence[int], tf32: bool) -> None:
    if architectures:
        config.num_compute_capabilities = len(architectures)
        for place, number in enumerate(architectures):
            config.set_compute_capability(trt.ComputeCapability.__members__[f'SM{number}'], place)
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _layer(layer: Any) -> Layer:
    outputs = (layer.get_output(place) for place in range(layer.num_outputs))
    return Layer(layer.name, layer.type.name, tuple(dtype_name(output.dtype) for output in outputs))


def _parser_message(parser: Any, package: Package) -> str:
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    words = []
    for error in errors[:5]:
        node = f'node {error.node_name()} ({error.node_operator()}): ' if error.node_operator() else ''
        words.append(f'{node}{_plain(error.desc())}')
    more = f' and {len(errors) - 5} more' if len(errors) > 5 else ''
    return f'{package.name} {package.version} does not take the file: {"; ".join(words)}{more}'


def _plain(message: str) -> str:
    """Return a message of TensorRT without the complaint that there is no GPU, and with what to change."""
    text = message.split('[checkMacros')[0].strip()
    if 'is a shape tensor and must have type Int32 or Int64' in text:
        text += (
            '; sizes inside depend on the values of this input: make it a constant (--constant NAME, '
            'backend_config.constants), or export the raw form'
        )
    return text


def _monitor(trt: Any, progress: Callable[[str, int, int], None]) -> Any:
    """Return a monitor that calls `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            progress(name, 0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self.steps.get(name, 0))
            return True

        def phase_finish(self, name: str) -> None:
            steps = self.steps.pop(name, 0)
            progress(name, steps, steps)

    return Monitor()
