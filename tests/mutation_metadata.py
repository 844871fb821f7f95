"""Faults in what a file says of itself: one value of one key of its metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mmdeploy_ext.contract.metadata import PREFIX
from mutation_sites import NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft

NOTE = 'note: '
"""How details begin that a verdict only notes."""
NOTED = ('config', 'config_sha256', 'checkpoint_sha256', 'versions')
"""Keys that say where a file comes from: where the graph is equal they are a note, or nothing."""
WORDS = ('meaning', 'unit')
"""Keys of the contract that are for people."""
TRACED = ('height', 'width', 'batch', 'dynamic_batch')
"""Options that a dynamic graph does not depend on."""


def metadata(draft: Draft) -> tuple[str, str]:
    """Change one value of one key."""
    entry = draft.pick(entry for entry in draft.model.metadata_props)
    key = entry.key.removeprefix(PREFIX)
    try:
        content = json.loads(entry.value)
    except ValueError:
        content = entry.value
    if not entry.key.startswith(PREFIX):
        entry.value += ' '
        return key, f'{NOTE}not a key of ours'
    if key == 'edits' and not content:
        content, path = [dict(command='simplify', arguments=[], versions={})], 'an edit that was not made'
    else:
        content, path = _changed(draft, content, '')
    entry.value = json.dumps(content)
    leaf = path.split(':')[0].rsplit('.')[-1]
    named = (key, path.split(':')[0]) == ('spec', '.name')
    traced = key == 'options' and leaf in TRACED and content.get('dynamic')
    free = leaf in WORDS or named or traced
    note = NOTE if key in NOTED or free else ''
    return key, f'{note}{path}'


def _changed(draft: Draft, content: object, path: str) -> tuple[object, str]:
    """Return content with one leaf changed, and what was done, with its path."""
    if isinstance(content, dict) and content:
        key = draft.pick(sorted(content))
        changed, where = _changed(draft, content[key], f'{path}.{key}')
        return {**content, key: changed}, where
    if isinstance(content, list) and content:
        if len(content) > 1 and content[0] != content[-1] and draft.random.random() < 0.4:
            return [content[-1], *content[1:-1], content[0]], f'{path}: first and last swapped'
        place = draft.pick(range(len(content)))
        changed, where = _changed(draft, content[place], f'{path}.{place}')
        return [*content[:place], changed, *content[place + 1 :]], where
    new = _leaf(draft, content)
    return new, f'{path}: {content!r} -> {new!r}'


def _leaf(draft: Draft, content: object) -> object:
    if isinstance(content, bool):
        return not content
    if isinstance(content, int):
        return content + draft.pick((-1, 1))
    if isinstance(content, float):
        return content * draft.pick((1.002, 1.1, 2.0)) if content else draft.pick((0.001, 1.0))
    if isinstance(content, str):
        return content[::-1] if content != content[::-1] else f'{content}x'
    if content is None:
        return draft.pick((0, 1.0))
    raise NoSite  # an empty list or dict
