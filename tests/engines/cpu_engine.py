"""An engine of TensorRT that answers on the CPU, and the memory that it is given."""

import ctypes
import types

import numpy as np


class HostMemory:
    """Memory of the CPU with the interface of a GPU's; counts what is not given back."""

    stream = 0

    def __init__(self):
        self.buffers = {}

    def put(self, array):
        block = self.empty(array.nbytes)
        ctypes.memmove(block, array.ctypes.data, array.nbytes)
        return block

    def empty(self, nbytes):
        buffer = (ctypes.c_char * max(nbytes, 1))()
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def take(self, block, into):
        ctypes.memmove(into.ctypes.data, block, into.nbytes)

    def free(self, block):
        del self.buffers[block]


class CpuEngine:
    """Stands for a deserialised engine of `two_outputs`: no GPU is here, so nothing of TensorRT runs.

    It lists its tensors in the order that it is given, and writes results to the addresses that it was told
    by name: what a permuted engine does.
    """

    def __init__(self, order=('x', 'sum', 'product'), names=None, largest=4):
        self.order, self.names, self.largest = list(order), names or {}, largest
        self.addresses, self.shape = {}, None
        self.num_io_tensors = len(self.order)

    def get_tensor_name(self, place):
        return self.names.get(self.order[place], self.order[place])

    def get_tensor_mode(self, name):
        return types.SimpleNamespace(name='INPUT' if name == 'x' else 'OUTPUT')

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name='FLOAT')

    def get_tensor_shape(self, name):
        return self.shape or (-1, 3)

    def create_execution_context(self):
        return self

    def set_input_shape(self, name, shape):
        """Take a shape of the profile."""
        self.shape = tuple(shape)
        return shape[0] <= self.largest

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        x = self._array('x').copy()
        self._array('sum')[...] = x + 2
        self._array('product')[...] = x * 2
        return True

    def _array(self, name):
        kind = ctypes.c_float * int(np.prod(self.shape))
        return np.frombuffer(kind.from_address(self.addresses[name]), np.float32).reshape(self.shape)
