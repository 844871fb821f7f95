"""The place at which a file first differs from its module: node, part of the module, and line of its code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.contract.spec import Stage
from mmdeploy_ext.graph.diff.findings import Bars
from mmdeploy_ext.proving.difference.locate import Search, Subject
from mmdeploy_ext.proving.difference.pair import RecordIndex
from mmdeploy_ext.proving.difference.record import TensorRecorder, record_stages

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx

    from mmdeploy_ext.proving.modules.calls import FlatModule

PACKAGES = Path(torch.__file__).parent, Path(__file__).parents[2]
"""Folders of PyTorch and of this package, as they are imported."""
LIBRARIES = tuple(os.path.join(folder, '') for package in PACKAGES for folder in (package, package.resolve()))
"""Folders of `PACKAGES`, each also without symbolic links, as texts that end in a separator."""


class LineRecorder(TensorRecorder):
    """A recorder that also notes for each record which line of the user's code ran.

    Attributes:
        lines: 'file:line' of each record, in the order of `records`; '' if it is unknown.
    """

    def __init__(self) -> None:
        """Begin with nothing recorded."""
        super().__init__()
        self.lines: list[str] = []

    def keep(self, tensor: torch.Tensor, operator: str) -> int:
        """Record a tensor, and the innermost line on the stack that is in no folder of `LIBRARIES`.

        See `TensorRecorder.keep`.
        """
        index = super().keep(tensor, operator)
        self.lines.append(_line_of_user())
        return index


def _line_of_user() -> str:
    """Return the innermost line on the stack that is in no folder of `LIBRARIES`; '' if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*LIBRARIES, '<')):
            return f'{file}:{frame.f_lineno}'
        frame = frame.f_back
    return ''


def locate(module: FlatModule, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> str:
    """Return where the first difference between a file and its module arises, in one line.

    '' if each node gives what its part of the module gives from the same inputs.

    Args:
        module: takes and returns the tensors of the file, on the CPU.
        model: the file.
        feeds: input of the file -> array, on which the two differ; all inputs, in the order of the module.
    """
    inputs, outputs = list(feeds), [value.name for value in model.graph.output]
    stage, bars = Stage('', module, tuple(inputs), tuple(outputs)), Bars()
    subject = Subject([stage], dict(feeds), None, 'the first input that differs')
    recorder = record_stages(
        [stage], {name: torch.tensor(array) for name, array in feeds.items()}, LineRecorder()
    )
    weights = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    search = Search(subject, bars, RecordIndex(recorder, weights, bars.born))
    first = search.compare(model, fresh=False).first
    if first is None:
        return ''
    parts = [f'node {first.node} ({first.op_type}), tensor {first.tensor}']
    if part := first.module.removeprefix('module').removeprefix('.'):
        parts.append(f'module {part}')
    if first.record >= 0 and recorder.lines[first.record]:
        parts.append(recorder.lines[first.record])
    error = first.born if first.born is not None else first.error
    if error is not None:
        parts.append(f'relative error {error:.2e}')
    return ', '.join([*parts, *first.evidence[:1]])
