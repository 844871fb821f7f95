"""From an ONNX model to an engine, through either TensorRT package; no GPU is needed for tensorrt-rtx."""

from __future__ import annotations

import collections
import contextlib
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
"""Smallest, usual and largest shape of an input; of an axis, in `shapes.parse_shapes`, shapes of one size."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the strongly typed network.

    Attributes:
        name: the ONNX node that it was made from, or a name of TensorRT's.
        kind: 'CONVOLUTION', 'MATRIX_MULTIPLY', ...
        outputs: name of each output's dtype, see `binding.dtype_name`, e.g. ('float32',).
    """

    name: str
    kind: str
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Built:
    """A serialised engine and facts of its build.

    Attributes:
        data: the serialised engine, the content of an engine file.
        layers: layers of the network; the engine has to keep their dtypes, and may fuse them.
        warnings: warnings of TensorRT while it built, each once.
        seconds: time of parsing and building.
    """

    data: bytes
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]
    seconds: float

    def layers_json(self) -> list[dict[str, Any]]:
        """Return the layers as plain JSON types: `name`, `kind` and `outputs` of each."""
        return [dataclasses.asdict(layer) | {'outputs': list(layer.outputs)} for layer in self.layers]

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Return kind of layer -> dtype of the first output -> number of layers."""
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
    """Build an engine.

    Args:
        model: the ONNX model, with its weights inside and below 2 GiB; the engine computes in its dtypes.
        package: the TensorRT that builds.
        architectures: GPU architectures to build for, all in one engine, e.g. (86, 89) for SM 8.6 and 8.9,
            which `check_architectures` has accepted: of tensorrt-rtx alone; () for the GPU of this machine.
        profiles: input -> smallest, usual and largest shape, as `profiles_of` makes them; for every input
            with an open axis; None or {} if all sizes are fixed.
        tf32: let products of float32 round their factors to 10 bits; off here, though on in TensorRT.
        progress: called with the phase's name, the number of steps done, and that of all its steps; phases
            lie in each other. With None, or a TensorRT without IProgressMonitor, nothing is called.

    Raises:
        EngineError: TensorRT does not start, or the parser does not take the model; the message names the
            node if TensorRT does.
        ExportError: TensorRT refused or failed to build, with its message.
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
    return f'{package.name} {package.version} does not take the file: {"; ".join(words)}{rest}'


def _plain(message: str) -> str:
    """Return a message of TensorRT without its complaint that there is no GPU, and with what to change."""
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
