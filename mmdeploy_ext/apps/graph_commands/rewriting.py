"""`graph.py replace, fold, simplify, convert-opset, fp16`: the same graph in other operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdeploy_ext.apps.graph_commands.command import Command

COMMANDS: dict[str, Command] = {}
