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

    The exporter makes a Reshape with a side of 0 of it, and fails with an internal assertion. The block is
    for a trace by TorchScript in which all sizes but the batch are fixed; it holds for the whole process.
    No index may be empty for the traced batch alone: that write would be lost for other batches, too.

    A mask, positions or a bound that are computed from values may select elements for other inputs: such a
    write is traced in any case. So is one into a tensor that has no elements itself, and, outside of a trace,
    one by tensors.
    """
    write = torch.Tensor.__setitem__

    def write_elements(tensor: torch.Tensor, index: Any, value: Any) -> None:
        if _is_fixed(index):
            state = torch._C._get_tracing_state()
            torch._C._set_tracing_state(None)  # the reading is for this decision alone
            try:
                if tensor.numel() > 0 and tensor[index].numel() == 0:
                    return
            finally:
                torch._C._set_tracing_state(state)
        write(tensor, index, value)

    with mock.patch.object(torch.Tensor, '__setitem__', write_elements):
        yield


def _is_fixed(index: Any) -> bool:
    """Return whether an index selects the same elements for all inputs of the traced sizes and batch."""
    if isinstance(index, torch.Tensor):
        return not _depends_on_values(index)
    if isinstance(index, slice):
        return _is_fixed((index.start, index.stop, index.step))
    return all(map(_is_fixed, index)) if isinstance(index, tuple | list) else True


def _depends_on_values(tensor: torch.Tensor) -> bool:
    """Return whether a tensor of the trace is made of more than sizes and constants."""
    if torch._C._get_tracing_state() is None:
        return True
    nodes, value_names = [torch._C._get_value_trace(tensor).node()], set()
    while nodes:
        node = nodes.pop()
        if node.kind() == 'prim::Param':
            return True
        if node.kind() != 'aten::size':
            inputs = {value.debugName(): value for value in node.inputs()}
            nodes += [inputs[name].node() for name in inputs.keys() - value_names]
            value_names |= inputs.keys()
    return False
