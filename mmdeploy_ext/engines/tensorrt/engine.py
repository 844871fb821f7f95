"""From an ONNX file to an engine file with its record: check, float16, sizes, build."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import helper

from mmdeploy_ext.base.errors import EngineError, ExportError, ModelFileError, UsageError
from mmdeploy_ext.base.files import check_writable, sha256_onnx
from mmdeploy_ext.engines.tensorrt import package as tensorrt_package
from mmdeploy_ext.engines.tensorrt.binding import Port, dtype_name, find_gpu
from mmdeploy_ext.engines.tensorrt.limits import check_limits, check_turing
from mmdeploy_ext.engines.tensorrt.record import (
    AS_GIVEN,
    RTX_ARCHITECTURES,
    Record,
    read_record,
    write_engine,
)
from mmdeploy_ext.graphs.io import files, types
from mmdeploy_ext.graphs.io.index import did_you_mean
from mmdeploy_ext.graphs.passes import for_tensorrt
from mmdeploy_ext.graphs.passes.deform_conv import replace_deform_conv
from mmdeploy_ext.graphs.passes.fp16 import to_fp16
from mmdeploy_ext.graphs.passes.precision import fp32_patterns
from mmdeploy_ext.graphs.passes.roi_align import replace_roi_align
from mmdeploy_ext.graphs.passes.select import matching_nodes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.engines.tensorrt.package import BuildRequest, Package
    from mmdeploy_ext.spec.tensors import GraphSpec

    Sizes = tuple[int, int, int]
    """Smallest, usual and largest size of an axis."""


# From an ONNX model to an engine by either TensorRT package; tensorrt-rtx needs no GPU.


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


# Optimisation profiles of inputs with open axes, from text.


FORM = 'NAME=MIN/OPT/MAX, e.g. input=1x3x320x320/1x3x608x608/1x3x800x1344, or an axis: B=1/1/4'
"""Form of `--shapes`, for messages."""
SUM = re.compile(r'(?P<axis>.+?)(?P<offset>[+-]\d+)')
"""An axis that follows from another: 'M0+1'."""


def parse_shapes(texts: Sequence[str]) -> dict[str, Profile]:
    """Parse `--shapes`: NAME=MIN/OPT/MAX or NAME=SHAPE, for an input or an open axis."""
    profiles: dict[str, Profile] = {}
    for text in texts:
        name, _, sizes = text.rpartition('=')
        parts = [part.replace(',', 'x').split('x') for part in sizes.split('/')]
        digits = all(number.isdecimal() for part in parts for number in part)
        if not (name and len(parts) in (1, 3) and digits):
            raise UsageError(f'--shapes {text}: expected {FORM}')
        shapes = [tuple(map(int, part)) for part in parts]
        low, usual, high = shapes if len(shapes) == 3 else shapes * 3
        if not len(low) == len(usual) == len(high):
            raise UsageError(f'--shapes {text}: MIN, OPT and MAX must have the same number of axes')
        if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
            raise UsageError(f'--shapes {text}: sizes must grow from MIN over OPT to MAX')
        if name in profiles:
            raise UsageError(f'--shapes {text}: {name} is given twice')
        profiles[name] = (low, usual, high)
    return profiles


def profiles_of(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Profile]:
    """Profile of each input with an open axis.

    Sizes that one input gives an axis hold for all inputs, and for dependent axes ('M0+1').
    """
    axes = _axes(spec, requested)
    profiles, missing = {}, []
    for tensor in spec.inputs:
        if not tensor.dynamic_axes:
            continue
        sizes = [(axis,) * 3 if isinstance(axis, int) else _sizes(axis, axes) for axis in tensor.axes]
        if None in sizes:
            unknown = [axis for axis in tensor.dynamic_axes.values() if _sizes(axis, axes) is None]
            missing.append(f'{tensor.name} {tensor.shape_text()} ({", ".join(unknown)})')
        else:
            profiles[tensor.name] = tuple(zip(*sizes, strict=True))
    if missing:
        raise UsageError(
            f'--shapes: the graph has dynamic axes without sizes: {"; ".join(missing)}: give {FORM}'
        )
    return profiles


def _axes(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Sizes]:
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    letters = {axis for tensor in spec.inputs for axis in tensor.dynamic_axes.values()}
    letters |= {match['axis'] for match in map(SUM.fullmatch, letters) if match}
    axes: dict[str, Sizes] = {}
    for name, (low, usual, high) in requested.items():
        if name in inputs:
            tensor = inputs[name]
            if len(low) != len(tensor.axes):
                raise UsageError(f'--shapes {name}: {len(low)} axes, the input is {tensor.shape_text()}')
            for axis, sizes in zip(tensor.axes, zip(low, usual, high, strict=True), strict=True):
                _add_axis(axes, name, axis, sizes)
        elif name in letters and len(low) == 1:
            _add_axis(axes, name, name, (low[0], usual[0], high[0]))
        else:
            names = [*inputs, *sorted(letters)]
            raise UsageError(
                f'--shapes {name}: is not an input or axis of the graph{did_you_mean(name, names)}; it has '
                f'{", ".join(names)}'
            )
    return axes


def _add_axis(axes: dict[str, Sizes], name: str, axis: int | str, sizes: Sizes) -> None:
    if isinstance(axis, int):
        if set(sizes) != {axis}:
            raise UsageError(f'--shapes {name}: gives {sizes} for an axis that is fixed at {axis}')
    elif axes.setdefault(axis, sizes) != sizes:
        raise UsageError(f'--shapes {name}: gives {sizes} for axis {axis}, another one gave {axes[axis]}')


def _sizes(axis: str, axes: Mapping[str, Sizes]) -> Sizes | None:
    match = SUM.fullmatch(axis)
    if axis not in axes and match and match['axis'] in axes:
        low, usual, high = (size + int(match['offset']) for size in axes[match['axis']])
        return low, usual, high
    return axes.get(axis)


@dataclasses.dataclass(frozen=True)
class Job:
    """A build with checked file and options, see `prepare`.

    Attributes:
        model: the graph to build, in float16 if asked.
        package: the TensorRT that builds; None for a check alone.
        precision: `AS_GIVEN` or 'fp16'.
    """

    source: Path
    model: onnx.ModelProto
    package: Package | None
    title: str
    architectures: tuple[int, ...]
    profiles: dict[str, Profile]
    precision: str
    keep_fp32: tuple[str, ...]
    constants: tuple[str, ...]
    tf32: bool


def prepare(request: BuildRequest) -> Job:
    """Check a file and the options of a build."""
    source, package, only_check = request.source, request.package, request.only_check
    architectures = tuple(dict.fromkeys(request.architectures))
    requested = parse_shapes(request.shapes)
    fixed = for_tensorrt.parse_constants(request.constants)
    model = for_tensorrt.fix_inputs(files.load(source), fixed)
    if files.is_large(model):
        raise EngineError(f'{source}: is over 2 GiB, more than an ONNX parser reads at once; split it')
    built_with = None
    rtx = (tensorrt_package.installed_package(package, architectures) or package) != 'tensorrt'
    check_limits(model, rtx=rtx, file=str(source))
    spec = for_tensorrt.engine_spec(model, fixed)
    profiles = {} if only_check else profiles_of(spec, requested)
    if not only_check:
        built_with = tensorrt_package.find_package(package, architectures)
        gpu = find_gpu(request.device)
        tensorrt_package.check_architectures(built_with, architectures, gpu.architecture if gpu else None)
        architectures = architectures or (gpu.architecture,)
    elif rtx and (unknown := [number for number in architectures if number not in RTX_ARCHITECTURES]):
        raise EngineError(
            f'--sm {" ".join(map(str, unknown))}: tensorrt-rtx builds for '
            f'{" ".join(map(str, RTX_ARCHITECTURES))}, and does not run on others; use tensorrt on such a GPU'
        )
    patterns: Sequence[str] = ()
    if request.fp16:
        patterns = fp32_patterns(model) if request.keep_fp32 is None else request.keep_fp32
    matching_nodes(model.graph.node, patterns)
    model = for_tensorrt.for_tensorrt(model)
    if request.fp16:
        model = to_fp16(model, spec, patterns)
    if rtx:
        model, _ = replace_deform_conv(model)
        model, _ = replace_roi_align(model)
        check_turing(model, architectures, str(source))
    return Job(
        source=Path(source),
        model=model,
        package=built_with,
        title='TensorRT-RTX' if rtx else 'TensorRT',
        architectures=architectures,
        profiles=profiles,
        precision='fp16' if request.fp16 else AS_GIVEN,
        keep_fp32=tuple(patterns),
        constants=tuple(request.constants),
        tf32=request.tf32,
    )


def build_file(
    job: Job, output: str | os.PathLike[str], progress: Callable[[str, int, int], None] | None = None
) -> tuple[Record, Built]:
    """Build an engine and write it with its record."""
    architectures = job.architectures if job.package.builds_for_others else ()
    built = build(job.model, job.package, architectures, job.profiles, tf32=job.tf32, progress=progress)
    facts = dict(sha256=hashlib.sha256(built.data).hexdigest(), nbytes=len(built.data), layers=built.dtypes())
    record = Record(**_record_of(job), **facts)
    write_engine(output, built.data, record)
    return record, built


def _record_of(job: Job) -> dict[str, Any]:
    return dict(
        architectures=job.architectures,
        precision=job.precision,
        keep_fp32=job.keep_fp32,
        constants=job.constants,
        tf32=job.tf32,
        package=job.package.name,
        version=job.package.version,
        onnx=job.source.name,
        onnx_sha256=sha256_onnx(job.source),
        inputs=_ports(job.model.graph.input),
        outputs=_ports(job.model.graph.output),
        profiles={name: [list(shape) for shape in shapes] for name, shapes in job.profiles.items()},
        metadata={entry.key: entry.value for entry in job.model.metadata_props},
    )


def _ports(values: Sequence[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    ports = []
    for value in values:
        shape = tuple(size if isinstance(size, int) else -1 for size in types.shape(value.type) or [])
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        ports.append(Port(value.name, dtype, shape))
    return tuple(ports)


def engine_beside(source: str, device: int, shapes: Sequence[str], constants: Sequence[str]) -> Path:
    """Path of an engine of an ONNX file in its own dtypes, without TF32, built unless a fitting one is there.

    `m.onnx` has `m.engine` or `m.sm86.engine`; the second is rewritten.
    """
    package = tensorrt_package.find_package()
    gpu = find_gpu(device)
    if gpu is None:
        raise EngineError(f'{package.name}: this machine has no GPU {device}, which an engine needs')
    if not Path(source).is_file():
        raise ModelFileError(f'{source}: no such file; expected an ONNX file or an engine (.engine)')
    stem = source.removesuffix('.onnx')
    target = Path(f'{stem}.sm{gpu.architecture}.engine')
    candidates = Path(f'{stem}.engine'), target
    shapes = shapes or _recorded_shapes(source, candidates)
    request = tensorrt_package.BuildRequest(
        source, shapes=shapes, constants=constants, package=package.name, device=device
    )
    job = prepare(request)
    for path in candidates:
        if _is_engine_of(job, path):
            return path
    check_writable(target)
    print(f'{target}: building with {package.name} {package.version}', file=sys.stderr, flush=True)
    build_file(job, target)
    return target


def _recorded_shapes(source: str, candidates: Sequence[Path]) -> list[str]:
    for path in filter(Path.is_file, candidates):
        with contextlib.suppress(ModelFileError):
            record = read_record(path)
            if record.onnx_sha256 == sha256_onnx(source):
                texts = []
                for port in record.inputs:
                    if -1 in port.shape:
                        shapes = ('x'.join(map(str, shape)) for shape in record.profiles[port.name])
                        texts.append(f'{port.name}={"/".join(shapes)}')
                return texts
    return []


def _is_engine_of(job: Job, path: Path) -> bool:
    try:
        record = read_record(path)
    except ModelFileError:
        return False
    expected = _record_of(job) | dict(architectures=record.architectures, onnx=record.onnx)
    same = all(getattr(record, name) == value for name, value in expected.items())
    return same and set(job.architectures) <= set(record.architectures)
