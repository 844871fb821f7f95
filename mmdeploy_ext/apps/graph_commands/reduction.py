"""`graph.py reduce`: the smallest part of a graph that still shows a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdeploy_ext.apps.graph_commands.command import Command

COMMANDS: dict[str, Command] = {}
