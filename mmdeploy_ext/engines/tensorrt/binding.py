"""Tensors of an engine bound by name, in whatever order it lists them. Imports no TensorRT."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import EngineError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.base.typed_json import JsonDataclass

# A GPU through the driver (libcuda) alone: name, memory, a stream.


LIBRARIES = ('libcuda.so.1', 'nvcuda.dll')
MAJOR, MINOR = 75, 76


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Name and architecture of a GPU, 86 for compute capability 8.6."""

    name: str
    architecture: int


def _driver() -> Any:
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.cuInit(0) == 0 else None
    return None


def find_gpu(index: int = 0) -> Gpu | None:
    """GPU by index; None without such a GPU or a driver."""
    driver, count = _driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) or index >= count.value:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(), 10 * major.value + minor.value)


class GpuMemory:
    """Memory blocks (by address) and a stream on one GPU, in its primary context, which TensorRT shares.

    InferenceError: a call of the driver failed, in any method.
    """

    def __init__(self, index: int = 0) -> None:
        if find_gpu(index) is None:
            raise EngineError(f'this machine has no GPU {index}; engines need an NVIDIA GPU')
        self._driver = _driver()
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call('cuDeviceGet', ctypes.byref(device), index)
        self._call('cuDevicePrimaryCtxRetain', ctypes.byref(context), device)
        self._call('cuCtxSetCurrent', context)
        self._call('cuStreamCreate', ctypes.byref(stream), 0)
        self.stream = stream.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            words = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(words))
            raise InferenceError(f'{function} failed: {(words.value or b"").decode()} ({status})')

    def empty(self, nbytes: int) -> int:
        block = ctypes.c_uint64()
        self._call('cuMemAlloc_v2', ctypes.byref(block), ctypes.c_size_t(nbytes))
        return block.value

    def put(self, array: np.ndarray) -> int:
        block = self.empty(max(array.nbytes, 1))
        source = ctypes.c_void_p(array.ctypes.data)
        self._call('cuMemcpyHtoD_v2', ctypes.c_uint64(block), source, ctypes.c_size_t(array.nbytes))
        return block

    def take(self, block: int, into: np.ndarray) -> None:
        """Wait for the stream and copy a block into a contiguous array of its size."""
        self._call('cuStreamSynchronize', ctypes.c_void_p(self.stream))
        target = ctypes.c_void_p(into.ctypes.data)
        self._call('cuMemcpyDtoH_v2', target, ctypes.c_uint64(block), ctypes.c_size_t(into.nbytes))

    def free(self, block: int) -> None:
        self._call('cuMemFree_v2', ctypes.c_uint64(block))


DTYPES = {
    'FLOAT': 'float32',
    'HALF': 'float16',
    'BF16': 'bfloat16',
    'INT8': 'int8',
    'UINT8': 'uint8',
    'INT32': 'int32',
    'INT64': 'int64',
    'BOOL': 'bool',
}
"""TensorRT DataType -> dtype name; others (FP8, INT4) are lower-cased."""


def dtype_name(kind: Any) -> str:
    return DTYPES.get(kind.name, kind.name.lower())


@dataclasses.dataclass(frozen=True)
class Port(JsonDataclass):
    """An input or output of an engine; open axes are -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def read_ports(engine: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    inputs, outputs = [], []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        port = Port(name, dtype_name(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name).name == 'INPUT' else outputs).append(port)
    return tuple(inputs), tuple(outputs)


def check_ports(ports: Sequence[Port], recorded: Sequence[Port], side: str, path: object) -> None:
    """Raise ModelFileError unless engine and record agree in names, dtypes and ranks."""
    actual, expected = {port.name: port for port in ports}, {port.name: port for port in recorded}
    missing, extra = sorted(expected.keys() - actual), sorted(actual.keys() - expected)
    if missing or extra:
        raise ModelFileError(
            f'{path}: the {side} of the engine are {", ".join(sorted(actual))}, expected '
            f'{", ".join(sorted(expected))} ({", ".join(missing) or "none"} missing, '
            f'{", ".join(extra) or "none"} unknown): the record beside it is of another one; build it again'
        )
    for name, port in expected.items():
        dtype, shape = actual[name].dtype, actual[name].shape
        if dtype != port.dtype or len(shape) != len(port.shape):
            raise ModelFileError(
                f'{path}: {name!r} of the engine is {dtype} {shape}, expected {port.dtype} {port.shape}; '
                f'build it again'
            )


class Session:
    """An engine with an execution context, fed and read by name."""

    def __init__(self, engine: Any, memory: GpuMemory) -> None:
        self.memory = memory
        self.inputs, self.outputs = read_ports(engine)
        self.context = engine.create_execution_context()
        if self.context is None:
            raise InferenceError('the engine has no room for its execution context on this GPU')

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on input name -> array; return output name -> array."""
        blocks: list[int] = []
        try:
            for port in self.inputs:
                blocks.append(self._feed(port, feeds))
            results = {port.name: self._allocate(port, blocks) for port in self.outputs}
            if not self.context.execute_async_v3(self.memory.stream):
                raise InferenceError('TensorRT failed to run the engine')
            for block, array in results.values():
                self.memory.take(block, array)
            return {name: array for name, (_, array) in results.items()}
        finally:
            for block in blocks:
                self.memory.free(block)

    def _feed(self, port: Port, feeds: Mapping[str, np.ndarray]) -> int:
        if port.name not in feeds:
            raise ShapeError(f'input {port.name!r} is missing; it expects {port.dtype} {port.shape}')
        array = np.asarray(feeds[port.name], order='C')  # `ascontiguousarray` would give a scalar an axis
        if array.dtype != np.dtype(port.dtype):
            raise ShapeError(f'input {port.name!r}: got {array.dtype}, expected {port.dtype}')
        if not self.context.set_input_shape(port.name, array.shape):
            raise ShapeError(
                f'input {port.name!r}: got shape {"x".join(map(str, array.shape))}, which is outside of the '
                f'sizes that the engine was built for; build it with other --shapes'
            )
        block = self.memory.put(array)
        self.context.set_tensor_address(port.name, block)
        return block

    def _allocate(self, port: Port, blocks: list[int]) -> tuple[int, np.ndarray]:
        shape = tuple(self.context.get_tensor_shape(port.name))
        if any(size < 0 for size in shape):
            raise InferenceError(
                f'output {port.name!r} has shape {shape}: its size depends on the data; use a form with '
                f'constant sizes (raw or decode)'
            )
        array = np.empty(shape, port.dtype)
        block = self.memory.empty(max(array.nbytes, 1))
        blocks.append(block)
        self.context.set_tensor_address(port.name, block)
        return block, array
