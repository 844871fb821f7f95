"""The engine of an ONNX file for the GPU at hand: the one that lies beside it, or a new one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import EngineError, ModelFileError
from mmdeploy_ext.core.files import check_writable
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
        shapes: as `tensorrt_engine.prepare` takes them.
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
    job = tensorrt_engine.prepare(
        source, shapes=shapes, constants=constants, package=package.name, device=device
    )
    stem = source.removesuffix('.onnx')
    target = Path(f'{stem}.sm{gpu.architecture}.engine')
    found = next((path for path in (Path(f'{stem}.engine'), target) if is_engine_of(job, path)), None)
    if found is not None:
        return found
    check_writable(target)
    print(f'{target}: building with {package.name} {package.version}', file=sys.stderr, flush=True)
    tensorrt_engine.build_file(job, target)
    return target


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
