"""Level 1, first of all: is the graph of a file that of a fresh export?

Equal graphs compute the same for every input, so that what inputs show of the export holds for the file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.contract.metadata_schema import OF_SPARSE_GRAPHS
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.graph import edits, signature
from mmdeploy_ext.graph.signature import GraphDifference
from mmdeploy_ext.proving.results import SHOWN, GraphResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.proving.fresh import Reference


def judge(model: onnx.ModelProto, metadata: Metadata, reference: Reference, name: str = '') -> GraphResult:
    """Compare the graph of a file with a fresh export; it has a name where a model has several."""
    try:
        fresh = reference.fresh()
    except Mm2OnnxError as error:
        return GraphResult(name, signature.count_nodes(model), False, error=one_line(error)[:500])
    mine, other = (signature.compute_signature(graph) for graph in (model, fresh))
    if facts := differing_facts(model, fresh):
        return GraphResult(name, mine.size, False, tuple(facts))
    if mine.equals(other):
        commands = ', '.join(edit['command'] for edit in metadata.edits)
        note = f'both after {commands}' if commands else ''
        return GraphResult(name, mine.size, True, by_inputs=rules_text(metadata.edits), note=note)
    differences = tuple(signature.differences(model, fresh, (mine, other)))
    other_versions = '; '.join(edits.other_versions(metadata.edits))
    return GraphResult(name, mine.size, False, differences, note=other_versions)


def rules_text(recorded: Sequence[Mapping[str, Any]]) -> str:
    """Return in one line the rules of recorded commands for whose equality inputs alone stand, or ''."""
    rules = edits.judged_by_inputs(recorded)
    if len(rules) > SHOWN:
        rules = [*rules[:SHOWN], f'{len(rules) - SHOWN} more']
    return ', '.join(rules)


def differing_facts(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[GraphDifference]:
    """Return the facts for the runtime in a file's metadata that a fresh export states otherwise.

    These are the entries that a graph brings. The others, which an export adds, are compared with config and
    checkpoint elsewhere, and a file that has more is refused (`metadata.check_names`).
    """
    mine, other = ({entry.key: entry.value for entry in one.metadata_props} for one in (model, fresh))
    keys = [PREFIX + name for name in OF_SPARSE_GRAPHS]
    return [
        GraphDifference('metadata', key, '', 'is not what a fresh export says')
        for key in keys
        if _parsed(mine.get(key)) != _parsed(other.get(key))
    ]


def _parsed(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
