"""The interface of an engine: activate, infer, deactivate. Imports no engine."""

from __future__ import annotations

import abc
import importlib
from typing import TYPE_CHECKING, Any, Self

from mmdeploy_ext.core.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec

BACKENDS = {
    'TorchBackend': 'mmdeploy_ext.engines.torch',
    'OnnxRuntimeBackend': 'mmdeploy_ext.engines.onnxruntime',
    'OpenVinoBackend': 'mmdeploy_ext.engines.openvino',
    'TensorRtBackend': 'mmdeploy_ext.engines.tensorrt.backend',
}
"""Registered name (`backend_config.type`) -> module; imported when it is used."""

ENGINE_TITLES = {
    'TorchBackend': 'PyTorch',
    'OnnxRuntimeBackend': 'ONNX Runtime',
    'OpenVinoBackend': 'OpenVINO',
    'TensorRtBackend': 'TensorRT',
}
"""What people call them."""


FEED_CHECKS = {'rtdetr': 'mmdeploy_ext.runtime.rtdetr.model'}
"""Family -> the module whose `check_feeds(metadata, feeds)` knows sizes that its graphs cannot take."""


class Backend(abc.ABC):
    """One network on one engine; a context manager.

    Attributes:
        engine: name for tables.
        spec: contract of the network; known after `activate`.
        metadata: of the file; None when the network did not come from a file.
        computes_in: 'fp16' or 'bf16' where the engine was asked for less than the file holds, else ''.
    """

    engine: str
    spec: GraphSpec
    metadata: Metadata | None = None
    computes_in: str = ''

    @abc.abstractmethod
    def activate(self) -> None:
        """Load the network; EngineError or ModelFileError when that is not possible."""

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network on checked feeds."""

    def deactivate(self) -> None:
        """Free the network."""
        return

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network.

        Args:
            feeds: input name -> array, of the dtypes and shapes that the spec states; float32 is rounded
                where it states float16.

        Returns:
            Output name -> array, in spec order; float32 where the spec states float16.

        Raises:
            ShapeError: feeds that the spec does not allow, the same on every engine.
        """
        feeds = self.spec.rounded(feeds)
        self.spec.check_feeds(feeds)
        if self.metadata is not None and self.metadata.family in FEED_CHECKS:
            module = importlib.import_module(FEED_CHECKS[self.metadata.family])
            module.check_feeds(self.metadata, feeds)
        outputs = self.run(feeds)
        missing = [name for name in self.spec.output_names if name not in outputs]
        if missing:
            raise ShapeError(f'{self.engine} gave no {missing}; it gave {sorted(outputs)}')
        return {name: _single(outputs[name]) for name in self.spec.output_names}

    def __enter__(self) -> Self:
        """Activate."""
        self.activate()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Deactivate."""
        self.deactivate()


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype('float32') if array.dtype == 'float16' else array


def build_backend(kind: str, *args: Any, **options: Any) -> Backend:
    """Make a backend by its registered name.

    Raises:
        ConfigError: no such backend, or an option that it does not have.
    """
    if kind not in BACKENDS:
        raise ConfigError(f'backend_config.type={kind!r}: expected one of {", ".join(BACKENDS)}')
    cls = getattr(importlib.import_module(BACKENDS[kind]), kind)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ConfigError(f'backend_config: {kind}: {error}') from error
