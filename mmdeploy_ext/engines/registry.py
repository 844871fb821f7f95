"""Every engine that runs a network, one row each. Importing this imports none of them.

A new engine is a module with a subclass of `Backend`, and a row here: options of tools, keys of
`backend_config`, tables, the names of files, the doctor and the benchmark follow from the row.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ConfigError, EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmdeploy_ext.engines.base import Backend

BASELINE = 'torch'
"""What the others are measured and proven against."""
COMPILED = 'torch-compile'
"""The same model, compiled by PyTorch: a contender of benchmarks that runs no file."""


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """An engine, or an engine with options that make it another contender.

    Attributes:
        name: on the command line.
        backend: registered name, `backend_config.type`.
        packages: modules; one of them has to be there.
        keys: of `backend_config` that it has.
        suffix: of its metrics, `metrics_<suffix>.json`.
        runs: kinds of models: 'images', 'stream' (frames of a drive, or sweeps), 'sparse' (backbones).
        files: whether it runs exported files.
        gpu: whether it runs on a GPU only.
        preset: options of the backend that make the row another one than that of its backend.
        shared: options where it shares its cores with other work of the same process.
        quantised: whether `quantize.py` makes INT8 files for it.
        float64: whether it computes in float64 where a file does; others take float32 in silence.
        doctor: of an optional engine: distribution, extra of `pip install '.[EXTRA]'`, and title and code of
            what the doctor tries.
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
        """The first of its packages that is installed."""
        return next((name for name in self.packages if importlib.util.find_spec(name)), None)

    @property
    def metrics(self) -> str:
        """Name of the file in which the test loop keeps its metrics."""
        return f'metrics_{self.suffix}.json'

    @property
    def on_request(self) -> bool:
        """Whether a benchmark takes it only where it is named: it computes in less than the file holds."""
        return 'inference_precision' in self.preset

    def options(self, threads: int) -> dict[str, Any]:
        """Return options of the backend."""
        return dict(self.preset, threads=threads) if 'threads' in self.keys else dict(self.preset)

    def runner_options(self, threads: int) -> dict[str, Any]:
        """Return what a family's `runner` takes for it."""
        return dict(self.options(threads), engine=self.backend)

    def open(self, path: str, threads: int) -> Backend:
        """Return its backend for a file; not active yet."""
        return build_backend(self.backend, path, **self.options(threads))

    def absence(self) -> str:
        """Return why it cannot run here; '' when it can."""
        if self.package is None:
            return f'{self.name} is not installed; install it with: {self.install}'
        missing = missing_providers(self.preset.get('providers', ()))
        if missing:
            return (
                f'{self.name}: this ONNX Runtime has no {", ".join(missing)}; install it with: {self.install}'
            )
        if self.gpu and not gpu_name():
            return f'{self.name}: there is no GPU here'
        return ''


_HERE = 'mmdeploy_ext.engines.'
_ONNXRUNTIME = EngineInfo(
    'onnxruntime', 'ONNX Runtime', 'OnnxRuntimeBackend', f'{_HERE}onnxruntime', ('onnxruntime',),
    'pip install onnxruntime', suffix='onnx', quantised=True,
    keys=('providers', 'threads', 'graph_optimization', 'spinning', 'plan_memory', 'round_fp16'),
    # threads that wait keep their cores busy, and would slow who shares them
    shared=dict(spinning='run', plan_memory=False),
)  # fmt: skip
_OPENVINO = EngineInfo(
    'openvino', 'OpenVINO', 'OpenVinoBackend', f'{_HERE}openvino', ('openvino',), 'pip install openvino',
    suffix='openvino', quantised=True, float64=False, keys=('threads', 'device', 'inference_precision'),
    doctor=('openvino', 'openvino', 'OpenVINO devices',
            'import openvino; print(", ".join(openvino.Core().available_devices))'),
)  # fmt: skip
ROWS = (
    EngineInfo(
        BASELINE, 'PyTorch', 'TorchBackend', f'{_HERE}torch', ('torch',), 'pip install torch', suffix='pth',
        keys=('dump',), files=False,
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
        'tensorrt', 'TensorRT', 'TensorRtBackend', f'{_HERE}tensorrt.backend', ('tensorrt', 'tensorrt_rtx'),
        'pip install tensorrt, or make env-tensorrt', suffix='tensorrt', runs=('images',), gpu=True,
        float64=False, keys=('device', 'shapes', 'constants'),
        doctor=('tensorrt-rtx', 'tensorrt', 'TensorRT-RTX',
                'import tensorrt_rtx; print(tensorrt_rtx.__version__)'),
    ),
    EngineInfo(
        COMPILED, 'torch.compile', 'TorchBackend', f'{_HERE}torch', ('torch',), 'pip install torch',
        keys=(), suffix='pth', files=False, runs=('images', 'stream'),
    ),
)  # fmt: skip
ENGINES = {row.name: row for row in ROWS}
"""Name on the command line -> engine, the baseline first."""
BACKENDS = {row.backend: row for row in ROWS if not row.preset and row.name != COMPILED}
"""Registered name (`backend_config.type`) -> engine."""
DEFAULT = _ONNXRUNTIME
QUANTISED = tuple(row.name for row in BACKENDS.values() if row.quantised)
"""Engines that INT8 files are made for."""


def file_engines() -> dict[str, EngineInfo]:
    """Return the engines of `--engine`: those that run exported files, without presets."""
    return {row.name: row for row in BACKENDS.values() if row.files}


def engines_of(kind: str) -> list[str]:
    """Return the names of the engines that a kind of model runs on; see `EngineInfo.runs`."""
    return [row.name for row in ROWS if kind in row.runs]


def build_backend(kind: str, *args: Any, **options: Any) -> Backend:
    """Make a backend by its registered name; a ConfigError refuses other names and options."""
    if kind not in BACKENDS:
        raise ConfigError(f'backend_config.type={kind!r}: expected one of {", ".join(BACKENDS)}')
    cls = getattr(importlib.import_module(BACKENDS[kind].module), kind)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ConfigError(f'backend_config: {kind}: {error}') from error


def build_exact(kind: str, path: str, **options: Any) -> Backend:
    """Make a backend for a file that computes in float64: ONNX Runtime's where this one does not.

    That one takes those of the options that it has.
    """
    if not BACKENDS[kind].float64:
        kind, options = DEFAULT.backend, {key: options[key] for key in options.keys() & set(DEFAULT.keys)}
    return build_backend(kind, path, **options)


def title_of(name: str) -> str:
    """Return what people call an engine, by its name or its backend's; the name when it is not known."""
    found = ENGINES.get(name) or BACKENDS.get(name)
    return found.title if found else name


def missing_providers(wanted: Iterable[str]) -> list[str]:
    """Return the execution providers that the ONNX Runtime here does not have."""
    if not wanted:
        return []
    import onnxruntime

    return [name for name in wanted if name not in onnxruntime.get_available_providers()]


def gpu_name() -> str:
    """Return the name of the first GPU, asked from its driver; '' without one."""
    from mmdeploy_ext.engines.tensorrt.cuda import find_gpu

    gpu = find_gpu(0)
    return gpu.name if gpu else ''


def check_names(names: Sequence[str], said: str) -> None:
    """Refuse engines that are unknown or named twice (UsageError) or not here (EngineError).

    `said` is the option as it was given, for the message.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= ENGINES.keys():
        raise UsageError(f'{said}: expected some of {",".join(ENGINES)}, each once')
    for name in names:
        reason = ENGINES[name].absence()
        if reason:
            raise EngineError(f'{said}: {reason}')


def present() -> list[str]:
    """Return the engines that can run here without being asked for, the baseline first."""
    return [row.name for row in ROWS if not row.on_request and not row.absence()]
