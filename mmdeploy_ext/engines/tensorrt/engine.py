"""From an ONNX file to an engine file with its record: check, float16, sizes, build."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import helper

from mmdeploy_ext.base.errors import EngineError, ModelFileError
from mmdeploy_ext.base.files import check_writable, sha256_onnx
from mmdeploy_ext.engines.tensorrt import package as tensorrt_package
from mmdeploy_ext.engines.tensorrt import shapes as tensorrt_shapes
from mmdeploy_ext.engines.tensorrt.binding import Port
from mmdeploy_ext.engines.tensorrt.build import Built, build
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from mmdeploy_ext.engines.tensorrt.limits import check_limits, check_turing
from mmdeploy_ext.engines.tensorrt.record import (
    AS_GIVEN,
    RTX_ARCHITECTURES,
    Record,
    read_record,
    write_engine,
)
from mmdeploy_ext.graphs.io import files, types
from mmdeploy_ext.graphs.passes import for_tensorrt
from mmdeploy_ext.graphs.passes.deform_conv import replace_deform_conv
from mmdeploy_ext.graphs.passes.fp16 import to_fp16
from mmdeploy_ext.graphs.passes.precision import fp32_patterns
from mmdeploy_ext.graphs.passes.roi_align import replace_roi_align
from mmdeploy_ext.graphs.passes.select import matching_nodes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import onnx

    from mmdeploy_ext.engines.tensorrt.build import Profile
    from mmdeploy_ext.engines.tensorrt.package import Package


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


def prepare(
    source: str | os.PathLike[str],
    *,
    fp16: bool = False,
    keep_fp32: Sequence[str] | None = None,
    shapes: Sequence[str] = (),
    constants: Sequence[str] = (),
    package: str = 'auto',
    architectures: Sequence[int] = (),
    tf32: bool = False,
    only_check: bool = False,
    device: int = 0,
) -> Job:
    """Check a file and the options of a build.

    Args:
        source: ONNX file.
        fp16: write float16 into the graph (`passes/fp16.py`); inputs and outputs keep their dtypes.
        keep_fp32: patterns of nodes that stay float32 instead of `fp32_patterns`, with `fp16`.
        shapes: NAME=MIN/OPT/MAX, see `parse_shapes`.
        constants: NAME or NAME=VALUES, see `for_tensorrt.fix_inputs`.
        package: 'tensorrt', 'tensorrt-rtx' or 'auto', see `find_package`.
        architectures: e.g. (86, 89); () is this machine's GPU.
        tf32: round factors of float32 products to 10 bits.
        only_check: build nothing: no package is needed, and open axes may stay open.
        device: index of this machine's GPU.
    """
    architectures = tuple(dict.fromkeys(architectures))
    requested = tensorrt_shapes.parse_shapes(shapes)
    fixed = for_tensorrt.parse_constants(constants)
    model = for_tensorrt.fix_inputs(files.load(source), fixed)
    if files.is_large(model):
        raise EngineError(f'{source}: is over 2 GiB, more than an ONNX parser reads at once; split it')
    built_with = None
    rtx = (tensorrt_package.installed_package(package, architectures) or package) != 'tensorrt'
    check_limits(model, rtx=rtx, file=str(source))
    spec = for_tensorrt.engine_spec(model, fixed)
    profiles = {} if only_check else tensorrt_shapes.profiles_of(spec, requested)
    if not only_check:
        built_with = tensorrt_package.find_package(package, architectures)
        gpu = find_gpu(device)
        tensorrt_package.check_architectures(built_with, architectures, gpu.architecture if gpu else None)
        architectures = architectures or (gpu.architecture,)
    elif rtx and (unknown := [number for number in architectures if number not in RTX_ARCHITECTURES]):
        raise EngineError(
            f'--sm {" ".join(map(str, unknown))}: tensorrt-rtx builds for '
            f'{" ".join(map(str, RTX_ARCHITECTURES))}, and does not run on others; use tensorrt on such a GPU'
        )
    patterns: Sequence[str] = ()
    if fp16:
        patterns = fp32_patterns(model) if keep_fp32 is None else keep_fp32
    matching_nodes(model.graph.node, patterns)
    model = for_tensorrt.for_tensorrt(model)
    if fp16:
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
        precision='fp16' if fp16 else AS_GIVEN,
        keep_fp32=tuple(patterns),
        constants=tuple(constants),
        tf32=tf32,
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
    job = prepare(source, shapes=shapes, constants=constants, package=package.name, device=device)
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
