"""OpenVINO on the same ONNX file. Imports neither torch nor mmcv."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import ConfigError, EngineError, InferenceError, ModelFileError
from mmdeploy_ext.engines.base import Backend

if TYPE_CHECKING:
    from collections.abc import Mapping


HINTS = dict(fp32='f32', bf16='bf16', fp16='f16')
"""`inference_precision` -> OpenVINO's name of it."""


class OpenVinoBackend(Backend):
    """One file in one OpenVINO compiled model: in float32, or in what it is asked to compute in."""

    engine = 'openvino'

    def __init__(
        self, path: str, threads: int = 0, device: str = 'CPU', inference_precision: str = 'fp32'
    ) -> None:
        """Keep the options.

        Args:
            path: the ONNX file.
            threads: inference threads; 0 leaves the choice to OpenVINO.
            device: OpenVINO device name.
            inference_precision: what it computes in, whatever the file holds: 'fp32', 'bf16' or 'fp16'.
        """
        if inference_precision not in HINTS:
            raise ConfigError(
                f'inference_precision={inference_precision!r}: expected one of {", ".join(HINTS)}'
            )
        self.path = str(path)
        self.threads = threads
        self.device = device
        self.inference_precision = inference_precision
        self.computes_in = '' if inference_precision == 'fp32' else inference_precision
        self.compiled: Any = None

    def activate(self) -> None:
        """Compile the model; an input with a default becomes an ordinary input, fed with the default."""
        try:
            import openvino
        except ImportError as error:
            raise EngineError('OpenVINO is not installed; install it with: pip install openvino') from error
        core = openvino.Core()
        if self.device not in core.available_devices:
            raise EngineError(
                f'OpenVINO device {self.device!r} was asked for; here are {core.available_devices}'
            )
        self._check_precision(core)
        self.metadata = read_metadata(self.path)
        self.spec = self.metadata.spec
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': HINTS[self.inference_precision]}
        if self.threads:
            settings['INFERENCE_NUM_THREADS'] = self.threads
        try:
            self.compiled = core.compile_model(
                core.read_model(self._without_defaults()), self.device, settings
            )
        except RuntimeError as error:
            unknown = re.search(r'No conversion rule found for operations: (.+)', str(error))
            if unknown:
                raise EngineError(
                    f'{self.path}: OpenVINO {openvino.__version__} has no {unknown.group(1)}; run the file '
                    f'with ONNX Runtime'
                ) from error
            text = ' '.join(str(error).split())
            raise ModelFileError(f'{self.path}: OpenVINO cannot compile it: {text}') from error

    def _check_precision(self, core: Any) -> None:
        """Refuse a precision that the device lacks: OpenVINO would accept the hint and compute in float32."""
        if not self.computes_in:
            return
        known = core.get_property(self.device, 'OPTIMIZATION_CAPABILITIES')
        if self.computes_in.upper() not in known:
            raise EngineError(
                f'inference_precision={self.computes_in}: OpenVINO device {self.device} computes in '
                f'{", ".join(known)} here; use fp32'
            )

    def _without_defaults(self) -> bytes:
        """Return the file with its default initializers removed: OpenVINO would take them for constants."""
        import onnx

        model = onnx.load(self.path)
        optional = {tensor.name for tensor in self.spec.inputs if tensor.default is not None}
        kept = [value for value in model.graph.initializer if value.name not in optional]
        model.graph.ClearField('initializer')
        model.graph.initializer.extend(kept)
        return model.SerializeToString()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`."""
        compiled = {name for port in self.compiled.inputs for name in port.get_names()}
        unused = {tensor.name for tensor in self.spec.inputs if tensor.unused} - compiled
        complete = self.spec.with_defaults(feeds)
        # another engine's int64 may be numpy's `longlong`, which OpenVINO does not know
        known = {name: value.view(value.dtype.str) for name, value in complete.items() if name not in unused}
        try:
            results = self.compiled(known)
        except RuntimeError as error:
            raise InferenceError(f'{self.path}: OpenVINO failed to run it: {error}') from error
        return {name: np.array(results[name]) for name in self.spec.output_names}

    def deactivate(self) -> None:
        """Free the compiled model."""
        self.compiled = None
