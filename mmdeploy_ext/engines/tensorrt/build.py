"""From an ONNX model to an engine by either TensorRT package; tensorrt-rtx needs no GPU."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import EngineError, ExportError
from mmdeploy_ext.engines.tensorrt.binding import dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.engines.tensorrt.package import Package

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of an input (or size of an axis)."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the strongly typed network: ONNX node or TensorRT's name, kind, dtype per output."""

    name: str
    kind: str
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Built:
    """A serialised engine, its layers before fusion, TensorRT's warnings and the seconds."""

    data: bytes
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]
    seconds: float

    def layers_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(layer) | {'outputs': list(layer.outputs)} for layer in self.layers]

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Kind of layer -> dtype of its first output -> number."""
        counters: dict[str, collections.Counter[str]] = {}
        for layer in self.layers:
            counters.setdefault(layer.kind, collections.Counter()).update(layer.outputs[:1])
        return {kind: dict(counter) for kind, counter in sorted(counters.items())}


def build(
    model: onnx.ModelProto,
    package: Package,
    architectures: Sequence[int] = (),
    profiles: Mapping[str, Profile] | None = None,
    *,
    tf32: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Built:
    """Build an engine of a model below 2 GiB in its own dtypes.

    `architectures` () is this machine's GPU; `tf32` rounds factors of float32 products to 10 bits; `progress`
    is called with phase, steps done and steps.
    """
    trt, log, start = package.module, package.logger(), time.perf_counter()
    builder = None
    with contextlib.suppress(TypeError):  # pybind's answer to a null pointer
        builder = trt.Builder(log)
    if builder is None:
        raise EngineError(f'{package.name} could not start: {"; ".join(log.errors())}')
    typed = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)  # 11.x has no other networks
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise EngineError(_parser_message(parser, package))
    config = builder.create_builder_config()
    if architectures:
        config.num_compute_capabilities = len(architectures)
        for index, number in enumerate(architectures):
            config.set_compute_capability(trt.ComputeCapability.__members__[f'SM{number}'], index)
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if progress is not None and hasattr(trt, 'IProgressMonitor'):
        config.progress_monitor = _monitor(trt, progress)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        reason = '; '.join([text for text in map(_plain, log.errors()) if text][:3]) or 'it gave no reason'
        raise ExportError(f'{package.name} {package.version} cannot build it: {reason}')
    layers = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        dtypes = tuple(dtype_name(layer.get_output(index).dtype) for index in range(layer.num_outputs))
        layers.append(Layer(layer.name, layer.type.name, dtypes))
    seconds = time.perf_counter() - start
    return Built(bytes(serialised), tuple(layers), tuple(dict.fromkeys(log.warnings())), seconds)


def _parser_message(parser: Any, package: Package) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    words = []
    for error in errors[:5]:
        node = f'node {error.node_name()} ({error.node_operator()}): ' if error.node_operator() else ''
        words.append(f'{node}{_plain(error.desc())}')
    rest = f' and {len(errors) - 5} more' if len(errors) > 5 else ''
    return f'{package.name} {package.version} does not support the file: {"; ".join(words)}{rest}'


def _plain(message: str) -> str:
    text = message.split('[checkMacros')[0].strip()
    if 'is a shape tensor and must have type Int32 or Int64' in text:
        text += (
            '; sizes in the graph depend on the values of this input: make it a constant (--constant '
            'NAME, backend_config.constants), or export the raw form'
        )
    return text


def _monitor(trt: Any, progress: Callable[[str, int, int], None]) -> Any:
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
