"""Runs the inputs of a kit on an engine of this machine: ONNX Runtime (CPU, CUDA), OpenVINO or TensorRT."""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import EngineError, InferenceError, Mm2OnnxError, UsageError, one_line
from mmdeploy_ext.base.files import check_new_folder
from mmdeploy_ext.bench.kit.contents import LIBSPCONV, KitGraph, read_manifest
from mmdeploy_ext.bench.kit.engine_files import is_dynamic, shape_ranges
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.engines import registry
from mmdeploy_ext.engines.registry import CPU

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    """Inputs -> outputs of a file, arrays by name."""


def run_kit(kit: str | Path, outputs: str | Path, engine: str, *, fp16: bool = False) -> str:
    """Run all inputs and frames of a kit on this machine, and write the outputs for `judge`.

    Args:
        kit: folder of the kit.
        outputs: new or empty folder; engines and rewritten files are kept in it.
        engine: one of `ENGINES`.
        fp16: write float16 into the graphs first. ONNX Runtime on a CPU and OpenVINO compute such graphs in
            float32.

    Returns:
        Device, engine, version, and the median milliseconds of each file with its first run.
    """
    kit, outputs, manifest = Path(kit), Path(outputs), read_manifest(Path(kit))
    if engine not in ENGINES:
        raise UsageError(f'--run {engine}: expected one of {", ".join(ENGINES)}')
    check_new_folder(outputs)
    if manifest.engine == LIBSPCONV:
        raise UsageError(f'{kit}: its file runs in libspconv only; see {kit}/README.md')
    device = device_of(engine)
    outputs.mkdir(parents=True, exist_ok=True)
    graphs = {entry.file: KitGraph.from_json(entry) for entry in manifest.graphs}
    seconds: dict[str, list[float]] = {}

    def opens(path: Path) -> Run:
        graph = graphs[path.name]
        cases = [case.to_json() for case in manifest.cases if case.graph == graph.name]
        run = _named(EngineError, f'{path.name}: {engine} does not support it', OPENERS[engine])(
            path, outputs, fp16, _shapes(graph, cases)
        )
        run = _named(InferenceError, f'{path.name}: {engine} failed to run it', run)
        times = seconds.setdefault(graph.name, [])

        def timed(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            start = time.perf_counter()
            results = run(inputs)
            times.append(time.perf_counter() - start)
            return results

        return timed

    run_all = _named(InferenceError, f'{kit}: its inputs cannot be run', run_onnxruntime.main)
    run_all(str(outputs), kit=kit, opens=opens, say=lambda text: None)
    medians = ', '.join(f'{name} {1e3 * statistics.median(times):.3g} ms' for name, times in seconds.items())
    return f'{device}, {"in float16, " if fp16 else ""}{medians}'


def _named(kind: type[Mm2OnnxError], subject: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except Mm2OnnxError:
            raise
        except (Exception, SystemExit) as error:  # the program of a kit ends where a provider does not start
            raise kind(f'{subject}: {one_line(error)[:300]}') from error

    return named


def device_of(engine: str) -> str:
    """Device, name and version of an engine; EngineError: the engine or its GPU is absent."""
    info = registry.ENGINES[engine]
    if absence := info.absence():
        raise EngineError(absence)
    title = 'TensorRT-RTX' if info.package == 'tensorrt_rtx' else info.title
    version = importlib.import_module(info.package).__version__
    return f'{registry.gpu_name() if info.gpu else "CPU"}, {title} {version}'


def _shapes(graph: KitGraph, cases: Sequence[Mapping[str, Any]]) -> list[str]:
    if not is_dynamic(graph):
        return []
    ranges, texts = shape_ranges(cases), []
    for name in (tensor.name for tensor in graph.spec.inputs if tensor.dynamic_axes):
        shapes = ['x'.join(map(str, ranges[option][name])) for option in ('min', 'opt', 'max')]
        texts.append(f'{name}={"/".join(shapes)}')
    return texts


def _in_float16(path: Path, folder: Path) -> Path:
    from mmdeploy_ext.graphs.io import files
    from mmdeploy_ext.graphs.passes.for_tensorrt import engine_spec
    from mmdeploy_ext.graphs.passes.fp16 import to_fp16
    from mmdeploy_ext.graphs.passes.precision import family_patterns, fp32_patterns

    model, target = files.load(path), folder / f'{path.stem}.fp16.onnx'
    patterns = [*fp32_patterns(model), *family_patterns(model)]
    files.save(to_fp16(model, engine_spec(model, {}), patterns), target)
    return target


def _open_onnxruntime(
    path: Path, folder: Path, fp16: bool, shapes: Sequence[str], providers: Sequence[str] = (CPU,)
) -> Run:
    return run_onnxruntime.open_file(_in_float16(path, folder) if fp16 else path, *providers)


def _open_openvino(path: Path, folder: Path, fp16: bool, shapes: Sequence[str]) -> Run:
    from mmdeploy_ext.bench.kit.runners import run_openvino
    from mmdeploy_ext.engines.openvino import readable
    from mmdeploy_ext.graphs.io import files

    path = _in_float16(path, folder) if fp16 else path
    model = files.load(path)
    rewritten = readable(model)
    if rewritten is not model:
        path = folder / f'{path.stem}.openvino.onnx'
        files.save(rewritten, path)
    return run_openvino.open_file(path)


def _open_tensorrt(path: Path, folder: Path, fp16: bool, shapes: Sequence[str]) -> Run:
    from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
    from mmdeploy_ext.engines.tensorrt.engine import build_file, prepare
    from mmdeploy_ext.engines.tensorrt.package import BuildRequest

    engine = folder / f'{path.stem}.engine'
    build_file(prepare(BuildRequest(path, fp16=fp16, shapes=shapes)), engine)
    backend = TensorRtBackend(str(engine))
    backend.open_session()
    return backend.session.run


OPENERS = {
    'onnxruntime': _open_onnxruntime,
    'onnxruntime-cuda': functools.partial(
        _open_onnxruntime, providers=registry.ENGINES['onnxruntime-cuda'].preset['providers']
    ),
    'openvino': _open_openvino,
    'tensorrt': _open_tensorrt,
}
"""Engine -> function (file, folder of outputs, fp16, sizes of open axes) -> `Run`."""
ENGINES = tuple(OPENERS)
