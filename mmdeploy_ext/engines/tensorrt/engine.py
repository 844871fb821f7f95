"""From an ONNX file to an engine file with its record: check, float16, sizes, build."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import helper

from mmdeploy_ext.core.errors import EngineError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.engines.tensorrt import package as tensorrt_package
from mmdeploy_ext.engines.tensorrt import shapes as tensorrt_shapes
from mmdeploy_ext.engines.tensorrt.binding import Port
from mmdeploy_ext.engines.tensorrt.build import Built, build
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from mmdeploy_ext.engines.tensorrt.file import AS_GIVEN, Record, write_engine
from mmdeploy_ext.graph.io import files, types
from mmdeploy_ext.graph.passes import for_tensorrt
from mmdeploy_ext.graph.passes.fp16 import to_fp16
from mmdeploy_ext.graph.passes.roi_align import replace_roi_align
from mmdeploy_ext.graph.passes.select import matching_nodes
from mmdeploy_ext.graph.tensorrt_limits import check_limits, check_turing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import onnx

    from mmdeploy_ext.engines.tensorrt.build import Profile
    from mmdeploy_ext.engines.tensorrt.package import Package


@dataclasses.dataclass(frozen=True)
class Job:
    """A build that was checked.

    Attributes:
        source: the ONNX file.
        model: what is built: with float16 written in where asked.
        package: that builds; None where nothing is built.
        title: what the checks were made for.
        architectures: to build for.
        profiles: of inputs with open axes.
        precision: 'as given' or 'fp16'.
        keep_fp32: patterns of nodes that stay float32.
        constants: inputs that became constants.
        tf32: see `build`.
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
    """Check a file and what is asked of it, before anything is built.

    Args:
        source: ONNX file.
        fp16: write float16 into the graph (`passes/fp16.py`); inputs and outputs stay what they are.
        keep_fp32: patterns of nodes that stay float32; None for the stages after the network.
        shapes: see `tensorrt_shapes.parse_shapes`.
        constants: NAME or NAME=VALUES: inputs that become constants (`for_tensorrt.fix_inputs`).
        package: 'tensorrt', 'tensorrt-rtx' or 'auto'.
        architectures: to build for; () for the GPU at hand.
        tf32: see `build`.
        only_check: no package is needed, and open axes may be left open.
        device: index of the GPU at hand.

    Raises:
        ModelFileError, UsageError, EngineError: see the steps.
    """
    architectures = tuple(dict.fromkeys(architectures))
    asked = tensorrt_shapes.parse_shapes(shapes)
    fixed = for_tensorrt.parse_constants(constants)
    model = for_tensorrt.fix_inputs(files.load(source), fixed)
    if files.is_large(model):
        raise EngineError(f'{source}: is over 2 GiB, which no ONNX parser takes in one piece; split it')
    found = None
    rtx = package == 'tensorrt-rtx' or bool(architectures) or not tensorrt_package.is_installed('tensorrt')
    rtx = rtx and package != 'tensorrt'
    check_limits(model, rtx=rtx, what=str(source))
    spec = for_tensorrt.spec_of(model, fixed)
    profiles = {} if only_check else tensorrt_shapes.profiles_of(spec, asked)
    if not only_check:
        found = tensorrt_package.find_package(package, architectures)
        gpu = find_gpu(device)
        tensorrt_package.check_architectures(found, architectures, gpu.architecture if gpu else None)
        architectures = architectures or (gpu.architecture,)
    kept = tuple(keep_fp32 if keep_fp32 is not None else for_tensorrt.fp32_patterns(model)) if fp16 else ()
    matching_nodes(model.graph.node, kept)
    ready = for_tensorrt.for_tensorrt(model)
    if fp16:
        ready = to_fp16(ready, spec, kept)
    if rtx:
        ready, _ = replace_roi_align(ready)
        check_turing(ready, architectures, str(source))
    return Job(
        Path(source),
        ready,
        found,
        'TensorRT-RTX' if rtx else 'TensorRT',
        tuple(architectures),
        profiles,
        'fp16' if fp16 else AS_GIVEN,
        kept,
        tuple(constants),
        tf32,
    )


def build_file(
    job: Job, output: str | os.PathLike[str], progress: Callable[[str, int, int], None] | None = None
) -> tuple[Record, Built]:
    """Build and write an engine and its record.

    Raises:
        EngineError, ExportError: see `build`.
    """
    others = job.architectures if job.package.builds_for_others else ()
    built = build(job.model, job.package, others, job.profiles, tf32=job.tf32, progress=progress)
    record = Record(
        **record_of(job),
        sha256=hashlib.sha256(built.data).hexdigest(),
        nbytes=len(built.data),
        layers=built.dtypes(),
    )
    write_engine(output, built.data, record)
    return record, built


def record_of(job: Job) -> dict[str, Any]:
    """Return what the record of an engine says that is known before the build."""
    return dict(
        package=job.package.name,
        version=job.package.version,
        architectures=job.architectures,
        onnx=job.source.name,
        onnx_sha256=sha256_file(job.source),
        precision=job.precision,
        keep_fp32=job.keep_fp32,
        constants=job.constants,
        tf32=job.tf32,
        inputs=_ports(job.model.graph.input),
        outputs=_ports(job.model.graph.output),
        profiles={name: [list(shape) for shape in shapes] for name, shapes in job.profiles.items()},
        metadata={entry.key: entry.value for entry in job.model.metadata_props},
    )


def _ports(values: Sequence[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    found = []
    for value in values:
        shape = tuple(size if isinstance(size, int) else -1 for size in types.shape(value.type) or [])
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        found.append(Port(value.name, dtype, shape))
    return tuple(found)
