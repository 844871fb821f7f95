"""A GPU through the driver (libcuda) alone: name, memory, a stream."""

import ctypes
import dataclasses
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import EngineError, InferenceError

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
