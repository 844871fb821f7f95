"""Writes into no element, which the TorchScript exporter of torch 2.13 cannot export.

Swin's masks have them: of a map that is one window wide, the columns before the last window are none.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def without_empty_writes() -> Iterator[None]:
    """Inside the block, `tensor[index] = value` with an index of no element leaves nothing in a trace.

    The exporter makes a Reshape with a side of 0 of it, and fails with an internal assertion.
    """
    write = torch.Tensor.__setitem__

    def write_elements(tensor: torch.Tensor, index: Any, value: Any) -> None:
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # the reading is for this decision alone
        try:
            is_empty = tensor.numel() > 0 and tensor[index].numel() == 0
        finally:
            torch._C._set_tracing_state(state)
        if not is_empty:
            write(tensor, index, value)

    with mock.patch.object(torch.Tensor, '__setitem__', write_elements):
        yield
