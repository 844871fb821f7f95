"""A graph with outputs that may stay on the engine's device for the next graph or frame. No torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import InferenceError
from mmdeploy_ext.engines.base import is_recording, note_run

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxruntime import OrtValue

    from mmdeploy_ext.engines.base import Backend

    Held = OrtValue | np.ndarray

DEVICES = dict.fromkeys(('CUDAExecutionProvider', 'TensorrtExecutionProvider'), 'cuda')
"""Execution provider -> device of its tensors; others use the CPU."""


class HeldGraph:
    """An active engine that takes and gives tensors on its device.

    Attributes:
        spec, metadata: of the file.
        seconds: of all successful runs.
        fed_bytes: bytes of arrays fed so far, without tensors on the device.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.spec, self.metadata = backend, backend.spec, backend.metadata
        self.seconds, self.fed_bytes = 0.0, 0
        self.is_bound = backend.engine == 'onnxruntime'
        self.device = 'cpu'
        if self.is_bound:
            self.device = DEVICES.get(backend.session.get_providers()[0], 'cpu')

    def zeros(self, name: str) -> Held:
        tensor = self.spec.tensor(name)
        return self._on_device(np.zeros(tensor.axes, tensor.dtype))

    def run(self, feeds: Mapping[str, Held], on_device: Collection[str] = ()) -> dict[str, Held]:
        """Run the graph; `held` outputs stay on the device, others are float32 arrays or integers.

        Unknown feeds are ignored. Errors as in `Backend.infer`.
        """
        feeds = {name: feeds[name] for name in self.spec.input_names if name in feeds}
        arrays = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray)}
        start = time.perf_counter()
        if self.is_bound and (on_device or len(arrays) < len(feeds)):
            outputs = self._run_bound(feeds, on_device)
        else:
            outputs = self.backend.infer({name: on_cpu(value) for name, value in feeds.items()})
        self.seconds += time.perf_counter() - start
        self.fed_bytes += sum(array.nbytes for array in arrays.values())
        return outputs

    def _run_bound(self, feeds: Mapping[str, Held], on_device: Collection[str]) -> dict[str, Held]:
        session = self.backend.session
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value, self.spec.tensor(name).dtype)
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.spec.output_names:
            binding.bind_output(name, self.device if name in on_device else 'cpu')
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise InferenceError(f'{self.backend.path}: ONNX Runtime failed to run it: {error}') from error
        values = dict(zip(self.spec.output_names, binding.get_outputs(), strict=True))
        if is_recording():
            note_run(
                self.backend.path,
                {name: on_cpu(value) for name, value in feeds.items()},
                {name: on_cpu(value) for name, value in values.items()},
            )
        return {name: value if name in on_device else fetch(value) for name, value in values.items()}

    def _on_device(self, array: np.ndarray) -> Held:
        if not self.is_bound:
            return array
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, self.device, 0)


def on_cpu(value: Held) -> np.ndarray:
    """The tensor as array on the CPU, perhaps sharing memory."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def fetch(value: Held) -> np.ndarray:
    """Copy of a tensor on the CPU; float16 becomes float32."""
    array = np.array(on_cpu(value))
    return array.astype(np.float32) if array.dtype == np.float16 else array
