"""A graph between named buffers of fixed shapes, which stay on the device of an engine that has one.

Imports neither torch nor mmcv.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import InferenceError
from mmdeploy_ext.engines.base import is_recording, note_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxruntime import OrtValue

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend

    Buffer = OrtValue | np.ndarray
    """Buffer of a `BoundGraph`, or of a `FedGraph`."""

DEVICES = dict.fromkeys(('CUDAExecutionProvider', 'TensorrtExecutionProvider'), 'cuda')
"""Execution provider -> device of its buffers; others have them on the CPU."""
ELEMENTS = {'tensor(float)': np.float32, 'tensor(float16)': np.float16, 'tensor(double)': np.float64}
"""Type of an `OrtValue` -> type of its elements."""


class BoundGraph:
    """One active session with IO binding: named buffers of fixed shapes instead of feeds.

    Attributes:
        spec: contract of the graph; all axes are fixed.
        metadata: metadata of the file.
        input_names: names of its inputs.
        device: device of its buffers, 'cpu' or 'cuda'.
        seconds: spent in all runs so far that did not fail.
    """

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.backend, self.spec, self.metadata = backend, backend.spec, backend.metadata
        self.device = DEVICES.get(backend.session.get_providers()[0], 'cpu')
        self.input_names = {node.name for node in backend.session.get_inputs()}
        self.binding, self.seconds = backend.session.io_binding(), 0.0

    def allocate(self, name: str, device: str | None = None) -> OrtValue:
        """Return a buffer of zeros for an input or output, on 'cpu' or 'cuda'; None: the engine's device.

        ShapeError: the graph has no tensor of this name.
        """
        from onnxruntime import OrtValue

        tensor = self.spec.tensor(name)
        buffer = OrtValue.ortvalue_from_shape_and_type(
            list(tensor.axes), np.dtype(tensor.dtype), device or self.device, 0
        )
        buffer.update_inplace(np.zeros(tensor.axes, tensor.dtype))
        return buffer

    def run(self, inputs: Mapping[str, OrtValue | np.ndarray], outputs: Mapping[str, OrtValue]) -> None:
        """Run the graph from and into buffers by name.

        An input may be an array on the CPU, which is read in place if it is contiguous; names that are no
        inputs are ignored, and outputs without a buffer are left out, but computed.

        InferenceError: ONNX Runtime failed, also for a missing input, another type or shape, an unknown
        output, or none.
        """
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        for name, value in inputs.items():
            if name not in self.input_names:
                continue
            if isinstance(value, np.ndarray):
                self.binding.bind_cpu_input(name, value)
            else:
                self.binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            self.binding.bind_ortvalue_output(name, value)
        start = time.perf_counter()
        try:
            self.backend.session.run_with_iobinding(self.binding)
            self.seconds += time.perf_counter() - start
        except Exception as error:
            raise InferenceError(f'{self.backend.path}: ONNX Runtime failed to run it: {error}') from error
        if is_recording():
            feeds = {name: on_cpu(inputs[name]) for name in self.spec.input_names if name in inputs}
            results = {name: on_cpu(buffer) for name, buffer in outputs.items()}
            note_run(self.backend.path, feeds, results)


class FedGraph:
    """A graph on any engine between buffers in the memory of the CPU; see `BoundGraph`.

    `spec` and `metadata` are those of the file, `seconds` those spent in all runs so far.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.spec, self.metadata = backend, backend.spec, backend.metadata
        self.seconds = 0.0

    def allocate(self, name: str, device: str | None = None) -> np.ndarray:
        """Return a buffer of zeros for an input or output; it is on the CPU whatever `device` is.

        ShapeError: the graph has no tensor of this name.
        """
        tensor = self.spec.tensor(name)
        return np.zeros(tensor.axes, tensor.dtype)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Run the graph from and into buffers by name; errors are those of `Backend.infer`.

        Names in `inputs` that are no inputs are ignored. KeyError: an input without a buffer, an optional one
        too, or a name in `outputs` that is no output.
        """
        start = time.perf_counter()
        computed = self.backend.infer({name: inputs[name] for name in self.spec.input_names})
        self.seconds += time.perf_counter() - start
        for name, buffer in outputs.items():
            buffer[...] = computed[name]


def bound(backend: Backend) -> BoundGraph | FedGraph:
    """Return a `BoundGraph` of an active engine that is ONNX Runtime, and a `FedGraph` of any other."""
    return BoundGraph(backend) if backend.engine == 'onnxruntime' else FedGraph(backend)


def fill(buffer: Buffer, values: np.ndarray) -> int:
    """Copy values, just as many as a buffer has, into it, cast to its type; return the number of its bytes.

    An `OrtValue` has one of the types `ELEMENTS`; KeyError: it has another.
    """
    if isinstance(buffer, np.ndarray):
        buffer[...] = np.reshape(values, buffer.shape)
        return buffer.nbytes
    array = np.ascontiguousarray(values, ELEMENTS[buffer.data_type()]).reshape(buffer.shape())
    buffer.update_inplace(array)
    return array.nbytes


def on_cpu(buffer: Buffer) -> np.ndarray:
    """Return the values of a buffer as an array on the CPU: the same memory, not a copy, if it lies there."""
    return buffer if isinstance(buffer, np.ndarray) else buffer.numpy()


def fetch(buffer: Buffer) -> np.ndarray:
    """Return a copy of a buffer on the CPU; float16 becomes float32."""
    array = np.array(on_cpu(buffer))
    return array.astype(np.float32) if array.dtype == np.float16 else array
