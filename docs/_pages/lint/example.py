"""The examples of a rule of the linter: modules that show the pitfall, and the same ones without it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.lint.rules import FAILS, REFUSED, RIGHT, UNRUNNABLE, WRONG, WRONG_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

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
class Examples:
    """Those of one rule.

    Attributes:
        failing: shows it; the rule has what each exporter does with it.
        passing: the same model without it, which every exporter gets right.
        about_sizes: it matters only for axes that stay dynamic.
        more_failing: other forms of the pitfall, for the tests.
    """

    failing: Example
    passing: Example
    about_sizes: bool = False
    more_failing: tuple[Example, ...] = ()
