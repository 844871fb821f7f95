"""What an edit did to a graph, as plain data and as lines. Needs onnx only."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import listed

LONGEST = 12
"""Names of a list that are printed."""


def describe(before: Sequence[onnx.ModelProto], after: onnx.ModelProto) -> dict[str, Any]:
    """Return what changed, as plain JSON types.

    Returns:
        `nodes` [before, after], `operators` (name -> difference), `inputs` and `outputs` (`added`,
        `removed` and `changed`: name -> type), `metadata_removed` (keys), `changed`.
    """
    old = [node.op_type for model in before for node in model.graph.node]
    counts = collections.Counter(node.op_type for node in after.graph.node)
    counts.subtract(old)
    keys = {entry.key for model in before for entry in model.metadata_props}
    return dict(
        nodes=[len(old), len(after.graph.node)],
        operators={name: many for name, many in sorted(counts.items()) if many},
        inputs=_values([model.graph.input for model in before], after.graph.input),
        outputs=_values([model.graph.output for model in before], after.graph.output),
        metadata_removed=sorted(keys.difference(entry.key for entry in after.metadata_props)),
        changed=len(before) != 1 or before[0] != after,
    )


def _values(
    before: Sequence[Sequence[onnx.ValueInfoProto]], after: Sequence[onnx.ValueInfoProto]
) -> dict[str, dict[str, str]]:
    old = {value.name: types.text(value.type) for values in before for value in values}
    new = {value.name: types.text(value.type) for value in after}
    return dict(
        added={name: text for name, text in new.items() if name not in old},
        removed={name: text for name, text in old.items() if name not in new},
        changed={name: text for name, text in new.items() if old.get(name, text) != text},
    )


def lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield what `describe` found as lines of text."""
    if not content['changed']:
        yield 'nothing changed: the file is that way already'
        return
    old, new = content['nodes']
    if content['operators']:
        counts = [f'{name} {many:+d}' for name, many in content['operators'].items()]
        yield f'nodes: {old} -> {new} ({listed(counts, LONGEST)})'
    for side in ('inputs', 'outputs'):
        for what, entries in content[side].items():
            if entries:
                yield f'{side} {what}: {listed([*map(" ".join, entries.items())], LONGEST)}'
    if content['metadata_removed']:
        keys = [key for key in content['metadata_removed'] if not key.startswith(PREFIX)]
        keys += [f'{PREFIX}*'] if len(keys) < len(content['metadata_removed']) else []
        yield f'metadata removed: {listed(keys, LONGEST)}: it describes the whole graph that was exported'
