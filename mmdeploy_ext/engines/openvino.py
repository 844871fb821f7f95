"""OpenVINO on the same ONNX file, without torch and mmcv."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import ConfigError, EngineError, InferenceError, LoadError, one_line
from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    import onnx

HINTS = dict(fp32='f32', bf16='bf16', fp16='f16')
"""`inference_precision` -> OpenVINO's name."""
OUT_OF_REGISTERS = "Can't allocate registers for a snippet"
"""Error of OpenVINO's CPU (2026.4.1) when it fuses too many element-wise operators, as in S2A-Net."""
UNFUSED = dict(SNIPPETS_MODE='DISABLE')
"""Setting that turns the fusion off."""


def require_openvino(packages: str = 'openvino') -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f'OpenVINO is not installed; install it with: pip install {packages}') from error
    return openvino


def compiled(source: str | bytes, threads: int = 0, device: str = 'CPU', precision: str = 'fp32') -> Any:
    """Compile an ONNX file, or its bytes, to an `openvino.CompiledModel`."""
    settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': HINTS[precision]}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    core = require_openvino().Core()
    model = core.read_model(source)
    try:
        return core.compile_model(model, device, settings)
    except RuntimeError as error:
        if OUT_OF_REGISTERS not in str(error):
            raise
    return core.compile_model(model, device, settings | UNFUSED)


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace deformable convolutions, which OpenVINO cannot read, in a copy."""
    from mmdeploy_ext.graphs.passes.deform_conv import replace_deform_conv

    return replace_deform_conv(model)[0]


class OpenVinoBackend(Backend):
    engine = 'openvino'

    def __init__(
        self, path: str, threads: int = 0, device: str = 'CPU', inference_precision: str = 'fp32'
    ) -> None:
        if inference_precision not in HINTS:
            raise ConfigError(
                f'inference_precision={inference_precision!r}: expected one of {", ".join(HINTS)}'
            )
        self.path, self.threads, self.device = str(path), threads, device
        self.computes_in = '' if inference_precision == 'fp32' else inference_precision
        self.compiled: Any = None

    def activate(self) -> None:
        """Optional inputs become ordinary ones that `run` feeds."""
        openvino = require_openvino()
        import onnx

        from mmdeploy_ext.graphs.io.files import openable

        core = openvino.Core()
        kinds = {device.partition('.')[0] for device in core.available_devices}  # several GPUs are GPU.0, ...
        if self.device not in kinds.union(core.available_devices):
            raise EngineError(
                f'OpenVINO device {self.device!r} was asked for; available are {core.available_devices}'
            )
        if self.computes_in:  # OpenVINO would accept the hint and compute in float32
            precisions = core.get_property(self.device, 'OPTIMIZATION_CAPABILITIES')
            if self.computes_in.upper() not in precisions:
                raise EngineError(
                    f'inference_precision={self.computes_in}: OpenVINO device {self.device} supports '
                    f'{", ".join(precisions)}; use fp32'
                )
        self.metadata = read_metadata(self.path)
        self.spec = self.metadata.spec
        model = onnx.load(self.path)
        # an initializer makes an input a constant for OpenVINO
        optional = {tensor.name for tensor in self.spec.inputs if tensor.default is not None}
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name in optional]:
            model.graph.initializer.remove(tensor)
        precision = self.computes_in or 'fp32'
        try:
            with openable(readable(model)) as source:
                self.compiled = compiled(source, self.threads, self.device, precision)
        except RuntimeError as error:
            unknown = re.search(r'No conversion rule found for operations: (.+)', str(error))
            if unknown:
                raise EngineError(
                    f'{self.path}: OpenVINO {openvino.__version__} has no {unknown.group(1)}; run the file '
                    f'with ONNX Runtime'
                ) from error
            text = one_line(error)
            raise LoadError(f'{self.path}: OpenVINO cannot compile it: {text}') from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.compiled is None:
            raise InferenceError(f'{self.path}: is closed; open it again')
        compiled_inputs = {name for port in self.compiled.inputs for name in port.get_names()}
        unused = {tensor.name for tensor in self.spec.inputs if tensor.unused} - compiled_inputs
        complete = self.spec.with_defaults(feeds)
        # another engine's int64 may be numpy's `longlong`, which OpenVINO does not know
        inputs = {name: value.view(value.dtype.str) for name, value in complete.items() if name not in unused}
        try:
            results = self.compiled(inputs)
        except RuntimeError as error:
            raise InferenceError(f'{self.path}: OpenVINO failed to run it: {error}') from error
        return {name: np.array(results[name]) for name in self.spec.output_names}

    def deactivate(self) -> None:
        self.compiled = None
