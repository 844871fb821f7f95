"""Shared parts of the contracts of Autoware's nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mm2onnx_driving.autoware.nodes import REMAPPER, REMAPPER_LABELS
from mm2onnx_driving.autoware.parameter_file import parameter_text
from mmdeploy_ext.families.contracts import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm2onnx_driving.autoware.nodes import Node


class AutowareContract(Contract):
    node: ClassVar[Node]
    used_by = 'check {folder}'

    @property
    def files(self) -> tuple[str, ...]:
        return self.node.graphs


def companion_texts(node: Node, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return file name -> text of a manifest and, if needed, a remapper without changes."""
    texts = {node.manifest: parameter_text(parameters)}
    if node.remapper:
        count = REMAPPER_LABELS**2
        matrices = dict(min_area_matrix=[0.0] * count, max_area_matrix=[0.0] * count)
        texts[REMAPPER] = parameter_text(dict(allow_remapping_by_area_matrix=[0] * count, **matrices))
    return texts
