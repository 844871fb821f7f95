"""Lines and state of a module that an export writes as constants, as the linter observes them.

A graph has the way that its example took, and starts from the state that the module had. Needs no mmcv.
"""

from __future__ import annotations

import dataclasses
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.model_classes import OURS
from mmdeploy_ext.lint import check
from mmdeploy_ext.lint.nested import copies, copy_of, tensors_in
from mmdeploy_ext.lint.rules import RIGHT, RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mmdeploy_ext.lint.report import Finding

VALUES = ('value-to-python', 'value-to-numpy', 'value-in-branch', 'value-in-loop')
SIZES = ('size-to-python', 'size-in-branch', 'size-in-loop', 'size-changed-in-place')
"""Rules of the linter about numbers that a trace has as constants: values of tensors, and sizes."""


@dataclasses.dataclass(frozen=True)
class TracedLine:
    """A line of the user's code that chooses by values or sizes.

    Attributes:
        file: as the linter shows it: relative to the working directory, or its name; for line 0 the name of
            the stage.
        line: its number, from 1 on; 0 if the code of a stage could not be observed.
        code: its text without indentation; for line 0 the reason.
        by: 'values', 'sizes', or 'state': then `file` is a class and its attribute, which every run changes.
    """

    file: str
    line: int
    code: str
    by: str

    @property
    def reason(self) -> str:
        """Why inputs decide, in a few words for the claim of a verdict."""
        if self.by == 'state':
            return f'{self.file} changes from run to run'
        if not self.line:
            return f'{self.file} could not be observed'
        return f'{self.file}:{self.line} chooses by {self.by}'

    @property
    def text(self) -> str:
        """The sentence of the verdict about it."""
        if self.by == 'state':
            return f'{self.reason}; the graph has no state'
        if not self.line:
            return f'{self.reason}: {self.code}'
        return f'{self.reason} (`{self.code}`); the graph has what the traced input chose'


def lines_of_module(
    module: torch.nn.Module,
    inputs: Sequence[Any],
    other_inputs: Sequence[Any],
    exporter: str,
    any_size: bool,
    places: Iterable[Path] = (),
    is_stateless: bool = True,
) -> list[TracedLine]:
    """Return the lines of the user's code in a module that choose, and what of its state changes.

    Args:
        module: the module, which stays as it is.
        inputs: its arguments, tensors in any nesting.
        other_inputs: other arguments, of other sizes if these may differ.
        exporter: 'torchscript' or 'dynamo'; what it follows is left out.
        any_size: whether lines that choose by sizes count.
        places: files and folders whose lines are the user's, though they are among installed packages.
        is_stateless: whether state that a run changes counts; that of models of frames is in their graphs.
    """
    report = check(
        module,
        inputs,
        other_inputs=other_inputs,
        dynamic=any_size,
        exporters=(exporter,),
        try_exports=False,
    )
    rules = VALUES + SIZES if any_size else VALUES
    rules = tuple(rule for rule in rules if RULES[rule].outcomes[exporter] != RIGHT)
    places = list(places)
    lines = [_line(finding) for finding in report if finding.rule in rules and _is_users(finding, places)]
    names = changing_state(module, inputs) if is_stateless else []
    return lines + [TracedLine(name, 0, '', 'state') for name in names]


def changing_state(module: torch.nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Return class and attribute of the numbers, tensors and containers of a module that every run changes.

    A copy of the module runs three times on the same inputs; what is stored anew in every run is no state, as
    long as it is equal. Nothing is said of a module that cannot be copied.
    """
    copy, states = copy_of(module), []
    if copy is module:
        return []
    for _ in range(3):
        with torch.no_grad():
            copy(*copies(list(inputs)))
        states.append(_state(copy))
    changed = (title for (path, title), value in states[2].items() if value != states[1].get((path, title)))
    return list(dict.fromkeys(changed))


def _state(module: torch.nn.Module) -> dict[tuple[str, str], Any]:
    """Return (path, class and attribute) -> what can be compared of the attributes of a module's parts.

    Parts of this package and of PyTorch are left out.
    """
    state: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        if type(part).__module__.partition('.')[0] in (OURS.name, 'torch'):
            continue
        for name, value in (*vars(part).items(), *part._buffers.items()):
            key = path, f'{type(part).__name__}.{name}'
            if isinstance(value, bool | int | float | str):
                state[key] = value
            elif isinstance(value, torch.Tensor):
                state[key] = _content(value)
            elif isinstance(value, list | tuple | dict | set) and name not in vars(torch.nn.Module()):
                state[key] = len(value), [_content(tensor) for tensor in tensors_in(value)]
    return state


def _content(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.detach().cpu().numpy().tobytes()


def _is_users(finding: Finding, places: Iterable[Path]) -> bool:
    """Return whether a finding is at a line of the user's that is no assert nor the like.

    That is one in the folders of the user's classes, or of no installed package and not of this one.
    """
    site = finding.site
    if site is None or site.waiting == 'guard':
        return False
    path = Path(site.path)
    if any(path.is_relative_to(folder) for folder in (OURS, sysconfig.get_path('stdlib'))):
        return False
    return not site.library or any(path.is_relative_to(place) for place in places)


def _line(finding: Finding) -> TracedLine:
    by = 'values' if finding.rule in VALUES else 'sizes'
    return TracedLine(finding.site.file, finding.site.line, finding.site.code, by)
