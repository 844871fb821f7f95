"""The engine of an ONNX file for the GPU at hand: the one that lies beside it, or a new one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import EngineError, ModelFileError
from mmdeploy_ext.core.files import check_writable, sha256_file
from mmdeploy_ext.engines.tensorrt import engine as tensorrt_engine
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from mmdeploy_ext.engines.tensorrt.file import read_record
from mmdeploy_ext.engines.tensorrt.package import find_package

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.engines.tensorrt.engine import Job


def engine_beside(source: str, device: int, shapes: Sequence[str], constants: Sequence[str]) -> Path:
    """Return the engine of an ONNX file: `m.engine` or `m.sm86.engine` where one fits, else a new one.

    Args:
        source: the ONNX file.
        device: index of the GPU.
        shapes: as `tensorrt_engine.prepare` takes them; without any, those of an engine of this file that
            lies beside it.
        constants: likewise.

    Raises:
        EngineError: no package, no GPU, or a file that TensorRT cannot take.
        ModelFileError: no such file.
        UsageError: open axes without sizes.
    """
    package = find_package()
    gpu = find_gpu(device)
    if gpu is None:
        raise EngineError(f'{package.name}: there is no GPU {device} here; an engine needs a GPU')
    if not Path(source).is_file():
        raise ModelFileError(f'{source}: no such ONNX file, and no engine (.engine)')
    stem = source.removesuffix('.onnx')
    target = Path(f'{stem}.sm{gpu.architecture}.engine')
    places = Path(f'{stem}.engine'), target
    job = tensorrt_engine.prepare(
        source,
        shapes=shapes or _recorded_shapes(source, places),
        constants=constants,
        package=package.name,
        device=device,
    )
    found = next((path for path in places if is_engine_of(job, path)), None)
    if found is not None:
        return found
    check_writable(target)
    print(f'{target}: building with {package.name} {package.version}', file=sys.stderr, flush=True)
    tensorrt_engine.build_file(job, target)
    return target


def _recorded_shapes(source: str, places: Sequence[Path]) -> list[str]:
    """Return the sizes that the first engine of this file was built with, as `--shapes` takes them."""
    for path in filter(Path.is_file, places):
        with contextlib.suppress(ModelFileError):
            record = read_record(path)
            if record.onnx_sha256 == sha256_file(source):
                given = {port.name: record.profiles[port.name] for port in record.inputs if -1 in port.shape}
                return [f'{name}={_sizes(shapes)}' for name, shapes in given.items()]
    return []


def _sizes(shapes: Sequence[Sequence[int]]) -> str:
    return '/'.join('x'.join(map(str, shape)) for shape in shapes)


def is_engine_of(job: Job, path: Path) -> bool:
    """Return whether an engine is there, whole, and what a build of the job would give."""
    if not path.is_file():
        return False
    try:
        record = read_record(path)
    except ModelFileError:
        return False
    wanted = tensorrt_engine.record_of(job)
    return all(
        getattr(record, name) == value
        for name, value in wanted.items()
        if name not in ('architectures', 'onnx')
    ) and set(job.architectures) <= set(record.architectures)
