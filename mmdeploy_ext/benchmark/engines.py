"""The engines that a benchmark can put against each other. Importing this imports none of them."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import EngineError, UsageError
from mmdeploy_ext.engines import build_backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.engines import Backend

BASELINE = 'torch'
CUDA_PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine by its name on the command line.

    Attributes:
        title: what people call it.
        backend: registered name.
        packages: modules; one of them has to be there.
        install: command that installs it.
        options: of the backend, besides file and threads.
        gpu: whether it runs on a GPU only.
        threads: whether its backend takes a number of threads.
        on_request: not among the engines that are taken where none is named.
    """

    title: str
    backend: str
    packages: tuple[str, ...]
    install: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gpu: bool = False
    threads: bool = True
    on_request: bool = False

    @property
    def package(self) -> str | None:
        """The first of its packages that is installed."""
        return next((name for name in self.packages if importlib.util.find_spec(name)), None)

    def open(self, path: str, threads: int) -> Backend:
        """Return its backend for a file; not active yet."""
        options = dict(self.options, threads=threads) if self.threads else dict(self.options)
        return build_backend(self.backend, path, **options)

    def stream(self, threads: int) -> dict[str, Any]:
        """Return what `SequenceFamily.runner` takes for this engine."""
        return dict(self.options, engine=self.backend, threads=threads)


ENGINES = {
    BASELINE: Engine('PyTorch', 'TorchBackend', ('torch',), 'pip install torch'),
    'onnxruntime': Engine('ONNX Runtime', 'OnnxRuntimeBackend', ('onnxruntime',), 'pip install onnxruntime'),
    'openvino': Engine('OpenVINO', 'OpenVinoBackend', ('openvino',), 'pip install openvino'),
    'openvino-bf16': Engine(
        'OpenVINO bf16',
        'OpenVinoBackend',
        ('openvino',),
        'pip install openvino',
        dict(inference_precision='bf16'),
        on_request=True,
    ),
    'onnxruntime-cuda': Engine(
        'ONNX Runtime CUDA',
        'OnnxRuntimeBackend',
        ('onnxruntime',),
        'pip install onnxruntime-gpu',
        dict(providers=CUDA_PROVIDERS),
        gpu=True,
    ),
    'tensorrt': Engine(
        'TensorRT',
        'TensorRtBackend',
        ('tensorrt', 'tensorrt_rtx'),
        'pip install tensorrt, or make env-tensorrt',
        gpu=True,
        threads=False,
    ),
}
"""Name on the command line -> engine. The baseline runs wherever `--device` says."""

KINDS = {
    'images': tuple(ENGINES),
    'stream': (BASELINE, 'onnxruntime', 'openvino', 'openvino-bf16'),
    'sparse': (BASELINE, 'onnxruntime', 'openvino'),
}
"""Kind of model (single images, a stream of frames, a sparse backbone) -> engines that it can run on."""


def title_of(name: str) -> str:
    """Return what people call an engine; its name when it is not known."""
    return ENGINES[name].title if name in ENGINES else name


def absence(name: str) -> str:
    """Return why an engine cannot run here; '' when it can."""
    engine = ENGINES[name]
    if engine.package is None:
        return f'{name} is not installed; install it with: {engine.install}'
    missing = _missing_providers(engine)
    if missing:
        return f'{name}: this ONNX Runtime has no {", ".join(missing)}; install it with: {engine.install}'
    if engine.gpu and not gpu_name():
        return f'{name}: there is no GPU here'
    return ''


def _missing_providers(engine: Engine) -> list[str]:
    wanted = engine.options.get('providers', ())
    if not wanted:
        return []
    import onnxruntime

    return [name for name in wanted if name not in onnxruntime.get_available_providers()]


def gpu_name() -> str:
    """Return the name of the first GPU, asked from its driver; '' without one."""
    from mmdeploy_ext.engines.tensorrt.cuda import find_gpu

    gpu = find_gpu(0)
    return gpu.name if gpu else ''


def measured_gpu() -> str:
    """Return the name of the GPU that PyTorch, the baseline, can run on; '' without one."""
    import torch

    return gpu_name() if torch.cuda.is_available() else ''


def check_names(names: Sequence[str], known: Sequence[str] = tuple(ENGINES), said: str = '') -> None:
    """Refuse engines that are not known, not here, or named twice.

    Args:
        names: of the command line.
        known: that the model can run on.
        said: the option as it was given, for the message.

    Raises:
        UsageError: unknown, twice, or none.
        EngineError: not here.
    """
    said = said or f'--engines {",".join(names)}'
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise UsageError(f'{said}: expected some of {",".join(known)}, each once')
    for name in names:
        reason = absence(name)
        if reason:
            raise EngineError(f'{said}: {reason}')


def present(known: Sequence[str] = tuple(ENGINES)) -> list[str]:
    """Return the engines that can run here without being asked for, the baseline first."""
    return [name for name in known if not ENGINES[name].on_request and not absence(name)]
