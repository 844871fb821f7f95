"""Level 1, first of all: is the graph of a file that of a fresh export?

Equal graphs compute the same for every input, so that what inputs show of the export holds for the file.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from mmdeploy_ext.contract.metadata import GRAPH_RULES, PREFIX, SAME_BYTES_RULES, Metadata
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.graph import edits, same
from mmdeploy_ext.proof.older import with_rounding_undone
from mmdeploy_ext.proof.results import GraphResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.proof.fresh import Reference


def judge(model: onnx.ModelProto, metadata: Metadata, reference: Reference, name: str = '') -> GraphResult:
    """Compare the graph of a file with a fresh export; it has a name where a model has several."""
    try:
        fresh = reference.fresh()
    except Mm2OnnxError as error:
        return GraphResult(name, same.size(model), False, error=one_line(error)[:500])
    mine, other = same.signature(model), same.signature(fresh)
    note = ''
    if not mine.equals(other) and metadata.rules < SAME_BYTES_RULES:
        model, near = with_rounding_undone(model, fresh, reference.rounding())
        mine, note = same.signature(model), near and f'graph rules {metadata.rules}: {near}'
    if facts := differing_facts(model, fresh):
        return GraphResult(name, mine.size, False, tuple(facts), note=note)
    if mine.equals(other):
        after = ', '.join(edit['command'] for edit in metadata.edits)
        note = '; '.join(filter(None, (after and f'both after {after}', note)))
        return GraphResult(name, mine.size, True, note=note)
    if metadata.rules < GRAPH_RULES and _has_network(mine, other, reference.network()):
        why = f'post-processing of rules {metadata.rules}'
        return GraphResult(name, mine.size, False, by_inputs=why, note=note)
    found = tuple(same.differences(model, fresh, (mine, other)))
    other_versions = '; '.join(edits.other_versions(metadata.edits))
    return GraphResult(name, mine.size, False, found, note='; '.join(filter(None, (note, other_versions))))


def differing_facts(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[same.Difference]:
    """Return the facts for the runtime in a file's metadata that a fresh export states otherwise.

    The entries that all files have (`Metadata`) are compared with config and checkpoint elsewhere.
    """
    common = {f'{PREFIX}{field.name}' for field in dataclasses.fields(Metadata)}
    mine, other = ({entry.key: entry.value for entry in one.metadata_props} for one in (model, fresh))
    keys = [key for key in other if key.startswith(PREFIX) and key not in common]
    return [
        same.Difference('metadata', key, '', 'is not what a fresh export says')
        for key in keys
        if _parsed(mine.get(key)) != _parsed(other[key])
    ]


def _parsed(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _has_network(mine: same.Signature, other: same.Signature, names: Sequence[str]) -> bool:
    """Return whether a file computes the tensors behind the network as a fresh export does."""
    wanted = {other.tensors.get(name, '') for name in names}
    return bool(wanted) and '' not in wanted and wanted <= set(mine.tensors.values())
