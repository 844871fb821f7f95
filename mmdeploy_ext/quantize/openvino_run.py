"""A network in OpenVINO, for comparing its outputs: the counterpart of `graph.run.Runner`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import EngineError, InferenceError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    import onnx


def require_openvino() -> ModuleType:
    """Import OpenVINO.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineError('OpenVINO is not installed; install it with: pip install openvino nncf') from error
    return openvino


class OpenVinoRunner:
    """A model in one OpenVINO compiled model, float32 where it is not INT8.

    Args:
        model: with all its weights in it.
        names: outputs to give.
        threads: 0 leaves the choice to OpenVINO.

    Raises:
        EngineError: OpenVINO is not installed.
        ModelFileError: it cannot compile the model.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], threads: int = 0) -> None:
        openvino = require_openvino()
        settings: dict[str, object] = {'INFERENCE_PRECISION_HINT': 'f32'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(model.SerializeToString()), 'CPU', settings)
        except RuntimeError as error:
            text = ' '.join(str(error).split())
            raise ModelFileError(f'OpenVINO cannot compile the network: {text}') from error
        self._names = list(names)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return name -> array; InferenceError where OpenVINO failed."""
        try:
            found = self._compiled(dict(feeds))
        except RuntimeError as error:
            raise InferenceError(f'OpenVINO failed to run the network: {error}') from error
        return {name: np.array(found[name]) for name in self._names}
