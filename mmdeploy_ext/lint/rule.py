"""A rule: the pitfall, the fix, two modules that show both, and what the exporters do with them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

RIGHT = 'right'
WRONG = 'wrong on other inputs'
WRONG_AT_ONCE = 'wrong'
FAILS = 'fails on other inputs'
REFUSED = 'refused'
UNRUNNABLE = 'refused by the engine'
CRASHES = 'kills the process'
OUTCOMES = {
    RIGHT: 'exports, and gives what PyTorch gives, also on inputs that the export never saw',
    WRONG: 'exports, and gives other numbers than PyTorch on inputs that the export never saw',
    WRONG_AT_ONCE: 'exports, and gives other numbers than PyTorch on the very input of the export, too',
    FAILS: 'exports, and the engine stops with an error on inputs that the export never saw',
    REFUSED: 'the exporter raises',
    UNRUNNABLE: 'exports, and ONNX Runtime (CPU) cannot load the file',
    CRASHES: 'the export ends the Python process (segmentation fault)',
}
"""Outcome -> what it means."""

EXPORTERS = ('torchscript', 'dynamo')
SEVERITIES = ('note', 'warning', 'error')


@dataclasses.dataclass(frozen=True)
class Example:
    """A module with what it is traced on, and what it meets later.

    Attributes:
        module: its class.
        traced: gives the tensors that the export sees.
        unseen: gives the tensors that it never saw.
        dynamic: input index -> axis -> letter.
        opset: of the export; by default 17 (torchscript) and 18 (dynamo).
        training: exported in training mode.
        prepare: called with module and tensors before each run, as the caller of such a module would.
    """

    module: type[torch.nn.Module]
    traced: Callable[[], tuple[torch.Tensor, ...]]
    unseen: Callable[[], tuple[torch.Tensor, ...]]
    dynamic: Mapping[int, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    opset: int | None = None
    training: bool = False
    prepare: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None] | None = None

    def build(self, args: tuple[torch.Tensor, ...]) -> torch.nn.Module:
        """Return the module, ready to be called with `args`."""
        module = self.module().train(self.training)
        self.make_ready(module, args)
        return module

    def make_ready(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Do what the caller does before each run."""
        if self.prepare is not None:
            self.prepare(module, args)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One known pitfall.

    Attributes:
        id: its name in reports.
        title: what is done, in a few words.
        why: what goes wrong.
        fix: what to write instead.
        failing: shows it.
        passing: the same model without it.
        outcomes: exporter -> what happened to `failing` on this stack.
        passing_outcomes: the same of `passing`, where it is not `RIGHT`.
        otherwise: severity where the exporter does the right thing: 'note' or 'warning'.
        about_sizes: it matters only for axes that stay dynamic.
        more_failing: other forms of the pitfall, for the tests.
    """

    id: str
    title: str
    why: str
    fix: str
    failing: Example
    passing: Example
    outcomes: Mapping[str, str]
    passing_outcomes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    otherwise: str = 'note'
    about_sizes: bool = False
    more_failing: tuple[Example, ...] = ()

    def severity(self, exporters: Sequence[str]) -> str:
        """Return 'error' where one of the exporters goes wrong with it, else `otherwise`."""
        return 'error' if any(self.outcomes[name] != RIGHT for name in exporters) else self.otherwise

    def expected(self, which: str, exporter: str) -> str:
        """Return the recorded outcome of `failing` or `passing`."""
        return self.outcomes[exporter] if which == 'failing' else self.passing_outcomes.get(exporter, RIGHT)


def check_exporters(exporters: Sequence[str]) -> None:
    """Refuse an unknown exporter.

    Raises:
        UsageError: the message gives those that there are.
    """
    unknown = [name for name in exporters if name not in EXPORTERS]
    if unknown or not exporters:
        raise UsageError(f'exporters {list(exporters)}: expected some of {", ".join(EXPORTERS)}')
