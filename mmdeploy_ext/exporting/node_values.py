"""Inputs and outputs of TorchScript's nodes as lists: an iterator of pybind11 ends with a C++ exception.

That takes 25 microseconds in a process that has loaded PyTorch alone, and more with each library. The
exporter of TorchScript reads inputs or outputs of each node several times: a fifth of its CPU seconds.
"""

import contextlib
from collections.abc import Iterator

import torch

from mmdeploy_ext.compat.import_hook import patched


@contextlib.contextmanager
def listed_values() -> Iterator[None]:
    """Inside the block `inputs()` and `outputs()` of a node iterate over a list, in the same order."""
    with patched(
        torch._C.Node,
        inputs=lambda node: iter([node.inputsAt(index) for index in range(node.inputsSize())]),
        outputs=lambda node: iter([node.outputsAt(index) for index in range(node.outputsSize())]),
    ):
        yield
