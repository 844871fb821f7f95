"""Every engine that runs a network, one row each. Importing this imports none of them.

A new engine is a module with a subclass of `Backend`, and a row here: options of tools, keys of
`backend_config`, tables, the names of files, the doctor and the benchmark follow from the row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ConfigError, EngineError, ModelFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.engines.base import Backend

BASELINE = 'torch'
"""Name of the engine that the others are measured and proven against: eager PyTorch."""
COMPILED = 'torch-compile'
"""Name of the engine that is the PyTorch model compiled by `torch.compile`: benchmarks alone use it."""


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """An engine, or an engine with fixed options, which tables and benchmarks list as another one.

    Attributes:
        name: on the command line, and key of `ENGINES`.
        title: name for tables and messages, e.g. 'ONNX Runtime'.
        backend: name of its subclass of `Backend`, which `backend_config.type` of a config states.
        module: dotted name of the module that defines the subclass.
        packages: importable modules; one of them has to be installed.
        install: the command that installs it, for messages.
        keys: keys of `backend_config` that it accepts: parameters of the subclass; of PyTorch `dump`, which
            the test loop reads.
        suffix: suffix of its metrics, `metrics_<suffix>.json`.
        runs: kinds of models: 'images', 'stream' (frames of a drive, or sweeps), 'sparse' (backbones).
        files: whether it runs exported files.
        gpu: whether it runs on a GPU only.
        preset: options of the backend by which this row differs from the backend's main row.
        shared: options of the backend for when it shares its cores with other work of the same process.
        quantised: whether `quantize.py` makes INT8 files for it.
        float64: whether it computes in float64 if a file does; otherwise it takes float32 without an error.
        doctor: of an optional engine, for the command `doctor` that checks an installation: distribution,
            extra of `pip install '.[EXTRA]'`, title of the trial, and the Python code that it runs. None: the
            command does not try it.
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
        """The first of its packages that is installed; None if none is."""
        return next((name for name in self.packages if importlib.util.find_spec(name)), None)

    @property
    def metrics(self) -> str:
        """Name of the file in which the test loop keeps its metrics."""
        return f'metrics_{self.suffix}.json'

    @property
    def on_request(self) -> bool:
        """Whether it computes in less than the file holds, so that `present` leaves it out."""
        return 'inference_precision' in self.preset

    def options(self, threads: int) -> dict[str, Any]:
        """Return the options of the backend: its preset, and `threads` if it has that option; not `shared`.

        0 threads leave the number to the engine.
        """
        return dict(self.preset, threads=threads) if 'threads' in self.keys else dict(self.preset)

    def runner_options(self, threads: int) -> dict[str, Any]:
        """Return `options(threads)` and the backend's name as `engine`: what a family's `runner` takes."""
        return dict(self.options(threads), engine=self.backend)

    def open(self, path: str, threads: int) -> Backend:
        """Return its backend for the file at `path`, not active yet; see `options` and `build_backend`."""
        return build_backend(self.backend, path, **self.options(threads))

    def absence(self) -> str:
        """Return which package, execution provider or GPU it lacks on this machine; '' if none.

        Whether the hardware computes in the precision of its preset shows when a file is opened.
        """
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
            return f'{self.name}: there is no GPU here'
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
"""All engines; of several rows of one backend the first, without a preset, is its main row."""
ENGINES = {row.name: row for row in ROWS}
"""Name on the command line -> engine, the baseline first."""
BACKENDS = {row.backend: row for row in ROWS if not row.preset and row.name != COMPILED}
"""Registered name (`backend_config.type`) -> engine."""
DEFAULT = _ONNXRUNTIME
"""The engine that runs a file when none is named."""
QUANTISED = tuple(row.name for row in BACKENDS.values() if row.quantised)
"""Engines that INT8 files are made for."""


def file_engines() -> dict[str, EngineInfo]:
    """Return name -> engine of those that `--engine` takes: they run exported files and have no preset."""
    return {row.name: row for row in BACKENDS.values() if row.files}


def engines_of(kind: str) -> list[str]:
    """Return the names of the engines that run a kind of model: 'images', 'stream' or 'sparse'.

    They need not be installed; the baseline is the first.
    """
    return [row.name for row in ROWS if kind in row.runs]


def build_backend(engine: str, *args: Any, **options: Any) -> Backend:
    """Make a backend, not active yet.

    Args:
        engine: its registered name, a key of `BACKENDS`.
        args: positional arguments of the backend, the path of the file first; of 'TorchBackend' stages and
            spec.
        options: its other arguments.

    Raises:
        ConfigError: no such backend, or one that does not have these options or refuses a value of them.
    """
    if engine not in BACKENDS:
        raise ConfigError(f'backend_config.type={engine!r}: expected one of {", ".join(BACKENDS)}')
    cls = getattr(importlib.import_module(BACKENDS[engine].module), engine)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ConfigError(f'backend_config: {engine}: {error}') from error


def build_exact(kind: str, path: str, **options: Any) -> Backend:
    """Make a backend, not active yet, for the file at `path`, whose graph computes in float64.

    `kind` is the registered name of the backend, `options` are its options. If its engine rounds float64 to
    float32, ONNX Runtime's backend is made instead, with those of the options that it has too. For the errors
    see `build_backend`.
    """
    if kind in BACKENDS and not BACKENDS[kind].float64:
        kind, options = DEFAULT.backend, {key: options[key] for key in options.keys() & set(DEFAULT.keys)}
    return build_backend(kind, path, **options)


def title_of(name: str) -> str:
    """Return the title of an engine, by its name or its backend's; the name if there is no such engine."""
    engine = ENGINES.get(name) or BACKENDS.get(name)
    return engine.title if engine else name


def gpu_name() -> str:
    """Return the name of the first GPU, as its driver gives it; '' without one."""
    from mmdeploy_ext.engines.tensorrt.cuda import find_gpu

    gpu = find_gpu(0)
    return gpu.name if gpu else ''


def check_names(names: Sequence[str], option: str) -> None:
    """Refuse engines that are unknown or named twice (UsageError) or cannot run here (EngineError).

    Without any `names` that is a UsageError, too. `option` is the option with its value, for the message.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= ENGINES.keys():
        raise UsageError(f'{option}: expected some of {",".join(ENGINES)}, each once')
    for name in names:
        reason = ENGINES[name].absence()
        if reason:
            raise EngineError(f'{option}: {reason}')


def present() -> list[str]:
    """Return the names of the engines that can run here in the precision of the file, baseline first.

    The benchmarks of the documentation run them; `benchmark.py` runs those that it is told.
    """
    return [row.name for row in ROWS if not row.on_request and not row.absence()]


def engine_settings(
    engine: str = 'onnxruntime',
    *,
    threads: int = 0,
    providers: Sequence[str] | None = None,
    inference_precision: str | None = None,
) -> dict[str, Any]:
    """Return the settings of the engine that runs the files of a proof.

    Args:
        engine: its name on the command line, one of `file_engines()`.
        threads: 0 leaves the choice to the engine.
        providers: execution providers of ONNX Runtime, in order of preference; None leaves them to the
            engine, which takes the CPU's.
        inference_precision: type that OpenVINO computes in: 'fp32', 'bf16' or 'fp16'; None leaves it to the
            engine, which takes 'fp32'.

    Returns:
        `engine`, the registered name of its backend, and those of the other options that are set.

    Raises:
        UsageError: no such engine, an option that it does not have, or a number of threads below 0.
        ConfigError: another `inference_precision`.
        EngineError: the engine, an execution provider or the device is not there, or the device does not
            compute in the precision.
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
    """Refuse an engine, a provider or an option that is not available, before a model is exported for it.

    `kind` is the registered name of the backend of an engine that runs files, `options` are its options.

    Raises:
        UsageError: `threads` is no whole number of 0 or more.
        ConfigError: an unknown backend, or an option or value that it does not have.
        EngineError: what the options name is not installed or not there, or the device does not compute in
            the precision.
    """
    threads = options.get('threads', 0)
    if not isinstance(threads, int) or threads < 0:
        raise UsageError(f'threads={threads!r}: expected 0 (the engine decides) or more')
    # An engine checks its options before it looks for the file '', which does not exist.
    with contextlib.suppress(ModelFileError), build_backend(kind, path='', **options):
        pass


def check_engine_kind(kind: str, inference_precision: str | None = None) -> None:
    """Refuse an engine that streaming and LiDAR models do not run on, before anything is exported for it.

    Args:
        kind: registered name of the backend.
        inference_precision: precision that was asked for; None for the engine's default.

    Raises:
        EngineError: the engine cannot run them; the message names engines that can.
        UsageError: bfloat16 or float16 of the engine, in which no sequence is proven.
    """
    if 'stream' not in BACKENDS[kind].runs:
        able = [name for name, row in BACKENDS.items() if 'stream' in row.runs]
        raise EngineError(f'{kind}: streaming and LiDAR models run on {" or ".join(able)}')
    if inference_precision not in (None, 'fp32'):
        raise UsageError(
            f'--inference-precision {inference_precision}: goes with models of single images; models of '
            f'frames have --precision fp16 of the export'
        )
