"""Every engine, one row each; imports none of them.

A new engine is a `Backend` module and a row: options, config keys, tables and the doctor follow from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ConfigError, EngineError, ModelFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.engines.base import Backend

BASELINE = 'torch'
"""Eager PyTorch, against which others are measured and proven."""
COMPILED = 'torch-compile'
CPU = 'CPUExecutionProvider'
"""The provider of ONNX Runtime that every machine has."""


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """An engine, or an engine with a preset that tables list by itself.

    Attributes:
        name: on the command line, key of `ENGINES`.
        title: e.g. 'ONNX Runtime'.
        backend: class of the backend, `backend_config.type`.
        packages: importable modules, one of which is needed.
        keys: keys of `backend_config` that it accepts.
        suffix: of `metrics_<suffix>.json`.
        runs: 'images', 'stream' (frames or sweeps), 'sparse' (backbones).
        files: runs exported files.
        preset: options by which it differs from the backend's main row.
        shared: options for cores shared with other work.
        quantised: `quantize.py` makes INT8 files for it.
        float64: computes float64 in float64; otherwise silently in float32.
        doctor: distribution, pip extra, title and code of the installation check; None: unchecked.
    """

    name: str
    title: str
    backend: str
    module: str
    packages: tuple[str, ...]
    install: str
    keys: tuple[str, ...]
    suffix: str
    runs: tuple[str, ...] = ('images', 'stream', 'sparse')
    files: bool = True
    gpu: bool = False
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantised: bool = False
    float64: bool = True
    doctor: tuple[str, str, str, str] | None = None

    @property
    def package(self) -> str | None:
        return next((name for name in self.packages if importlib.util.find_spec(name)), None)

    @property
    def metrics(self) -> str:
        return f'metrics_{self.suffix}.json'

    @property
    def on_request(self) -> bool:
        """Whether it computes below the file's precision, so `present` leaves it out."""
        return 'inference_precision' in self.preset

    def options(self, threads: int) -> dict[str, Any]:
        """Preset options, with `threads` if supported (0: the engine decides)."""
        return dict(self.preset, threads=threads) if 'threads' in self.keys else dict(self.preset)

    def runner_options(self, threads: int) -> dict[str, Any]:
        """`options(threads)` with the backend's name as `engine`, for a family's `runner`."""
        return dict(self.options(threads), engine=self.backend)

    def open(self, path: str, threads: int) -> Backend:
        return build_backend(self.backend, path, **self.options(threads))

    def absence(self) -> str:
        """Missing package, execution provider or GPU, or ''."""
        if self.package is None:
            return f'{self.name} is not installed; install it with: {self.install}'
        if 'providers' in self.preset:
            import onnxruntime

            available = onnxruntime.get_available_providers()
            missing = [name for name in self.preset['providers'] if name not in available]
            if missing:
                return (
                    f'{self.name}: this ONNX Runtime has no {", ".join(missing)}; install it with: '
                    f'{self.install}'
                )
        if self.gpu and not gpu_name():
            return f'{self.name}: this machine has no GPU'
        return ''


_PACKAGE = 'mmdeploy_ext.engines.'
_ONNXRUNTIME = EngineInfo(
    'onnxruntime', 'ONNX Runtime', 'OnnxRuntimeBackend', f'{_PACKAGE}onnxruntime', ('onnxruntime',),
    'pip install onnxruntime', suffix='onnx', quantised=True,
    keys=('providers', 'threads', 'graph_optimization', 'spinning', 'plan_memory', 'round_fp16'),
    # threads that wait keep their cores busy, and would slow who shares them
    shared=dict(spinning='run', plan_memory=False),
)  # fmt: skip
_OPENVINO = EngineInfo(
    'openvino', 'OpenVINO', 'OpenVinoBackend', f'{_PACKAGE}openvino', ('openvino',), 'pip install openvino',
    suffix='openvino', quantised=True, float64=False, keys=('threads', 'device', 'inference_precision'),
    doctor=('openvino', 'openvino', 'OpenVINO devices',
            'import openvino; print(", ".join(openvino.Core().available_devices))'),
)  # fmt: skip
ROWS = (
    EngineInfo(
        BASELINE, 'PyTorch', 'TorchBackend', f'{_PACKAGE}torch', ('torch',), 'pip install torch',
        suffix='pth', keys=('dump',), files=False,
    ),
    _ONNXRUNTIME,
    _OPENVINO,
    dataclasses.replace(
        _OPENVINO, name='openvino-bf16', title='OpenVINO bf16', runs=('images', 'stream'),
        preset=dict(inference_precision='bf16'),
    ),
    dataclasses.replace(
        _ONNXRUNTIME, name='onnxruntime-cuda', title='ONNX Runtime CUDA', runs=('images',), gpu=True,
        install='pip install onnxruntime-gpu',
        preset=dict(providers=('CUDAExecutionProvider', 'CPUExecutionProvider')),
    ),
    EngineInfo(
        'tensorrt', 'TensorRT', 'TensorRtBackend', f'{_PACKAGE}tensorrt.backend',
        ('tensorrt', 'tensorrt_rtx'), 'pip install tensorrt, or make env-tensorrt', suffix='tensorrt',
        runs=('images',), gpu=True, float64=False, keys=('device', 'shapes', 'constants'),
        doctor=('tensorrt-rtx', 'tensorrt', 'TensorRT-RTX',
                'import tensorrt_rtx; print(tensorrt_rtx.__version__)'),
    ),
    EngineInfo(
        COMPILED, 'torch.compile', 'TorchBackend', f'{_PACKAGE}torch', ('torch',), 'pip install torch',
        keys=(), suffix='pth', files=False, runs=('images', 'stream'),
    ),
)  # fmt: skip
ENGINES = {row.name: row for row in ROWS}
BACKENDS = {row.backend: row for row in ROWS if not row.preset and row.name != COMPILED}
"""`backend_config.type` -> engine."""
DEFAULT = _ONNXRUNTIME
QUANTISED = tuple(row.name for row in BACKENDS.values() if row.quantised)


def file_engines() -> dict[str, EngineInfo]:
    """Choices of `--engine`: engines without preset that run files."""
    return {row.name: row for row in BACKENDS.values() if row.files}


def engines_of(kind: str) -> list[str]:
    """Names of engines for 'images', 'stream' or 'sparse', installed or not, baseline first."""
    return [row.name for row in ROWS if kind in row.runs]


def build_backend(engine: str, *args: Any, **options: Any) -> Backend:
    """Make an inactive backend, a key of `BACKENDS`."""
    if engine not in BACKENDS:
        raise ConfigError(f'backend_config.type={engine!r}: expected one of {", ".join(BACKENDS)}')
    cls = getattr(importlib.import_module(BACKENDS[engine].module), engine)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ConfigError(f'backend_config: {engine}: {error}') from error


def build_exact(kind: str, path: str, **options: Any) -> Backend:
    """Make an inactive backend for a file in float64; ONNX Runtime replaces engines that round."""
    if kind in BACKENDS and not BACKENDS[kind].float64:
        kind, options = DEFAULT.backend, {key: options[key] for key in options.keys() & set(DEFAULT.keys)}
    return build_backend(kind, path, **options)


def title_of(name: str) -> str:
    engine = ENGINES.get(name) or BACKENDS.get(name)
    return engine.title if engine else name


def gpu_name() -> str:
    from mmdeploy_ext.engines.tensorrt.binding import find_gpu

    gpu = find_gpu(0)
    return gpu.name if gpu else ''


def check_names(names: Sequence[str], option: str) -> None:
    """Raise UsageError for no, unknown or repeated engines, EngineError for engines that cannot run here."""
    if not names or len(set(names)) < len(names) or not set(names) <= ENGINES.keys():
        raise UsageError(f'{option}: expected some of {",".join(ENGINES)}, each once')
    for name in names:
        reason = ENGINES[name].absence()
        if reason:
            raise EngineError(f'{option}: {reason}')


def present() -> list[str]:
    """Engines that can run here in the file's precision, baseline first."""
    return [row.name for row in ROWS if not row.on_request and not row.absence()]


def engine_settings(
    engine: str = 'onnxruntime',
    *,
    threads: int = 0,
    providers: Sequence[str] | None = None,
    inference_precision: str | None = None,
) -> dict[str, Any]:
    """Settings of the engine that runs a proof's files: `engine` (registered backend) and set options.

    Args:
        engine: one of `file_engines()`.
        threads: 0: the engine decides.
        providers: ONNX Runtime's, in order; None: the CPU's.
        inference_precision: OpenVINO's 'fp32', 'bf16' or 'fp16'; None: 'fp32'.
    """
    if engine not in file_engines():
        raise UsageError(f'--engine {engine}: expected one of {", ".join(file_engines())}')
    info = ENGINES[engine]
    if threads < 0:
        raise UsageError(f'--threads {threads}: expected 0 (the engine decides) or more')
    settings: dict[str, Any] = dict(engine=info.backend)
    options = dict(threads=threads, providers=providers, inference_precision=inference_precision)
    for key, value in options.items():
        if not value:
            continue
        if key not in info.keys:
            able = ' or '.join(name for name, row in file_engines().items() if key in row.keys)
            option = f'--{key.replace("_", "-")}'
            raise UsageError(f'{option} goes with --engine {able}, got --engine {engine}')
        settings[key] = value
    check_engine(settings['engine'], {key: value for key, value in settings.items() if key != 'engine'})
    return settings


def check_engine(kind: str, options: Mapping[str, Any]) -> None:
    """Check a backend and its options before an export."""
    threads = options.get('threads', 0)
    if not isinstance(threads, int) or threads < 0:
        raise UsageError(f'threads={threads!r}: expected 0 (the engine decides) or more')
    # An engine checks its options before it looks for the file '', which does not exist.
    with contextlib.suppress(ModelFileError), build_backend(kind, path='', **options):
        pass


def check_engine_kind(kind: str, inference_precision: str | None = None) -> None:
    """Raise EngineError unless an engine runs streaming and LiDAR models."""
    if 'stream' not in BACKENDS[kind].runs:
        able = [name for name, row in BACKENDS.items() if 'stream' in row.runs]
        raise EngineError(f'{kind}: streaming and LiDAR models run on {" or ".join(able)}')
    if inference_precision not in (None, 'fp32'):
        raise UsageError(
            f'--inference-precision {inference_precision}: is for models of single images; for models of '
            'frames, export with --precision fp16'
        )
