"""Faults in the metadata of a file: one value, one key, or the record of commands that changed it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph.passes.named_rules import replace_all
from mutation_sites import NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft

NOTE = 'note: '
"""How details begin that a verdict only notes."""
NOTED = ('config', 'config_sha256', 'checkpoint_sha256', 'versions', 'model_classes')
"""Keys that say where a file comes from: where the graph is equal they are a note, or nothing."""
TRACED = ('height', 'width', 'batch', 'dynamic_batch')
"""Options that a dynamic graph does not depend on."""


def metadata(draft: Draft) -> tuple[str, str]:
    """Change one value of one key."""
    entry = draft.pick(draft.model.metadata_props)
    key = entry.key.removeprefix(PREFIX)
    try:
        content = json.loads(entry.value)
    except ValueError:
        content = entry.value
    if not entry.key.startswith(PREFIX):
        entry.value += ' '
        return key, f'{NOTE}not a key of ours'
    if key == 'edits' and not content:
        content, path = ['simplify'], 'an edit that was not made'
    else:
        content, path = _changed(draft, content, '')
    entry.value = json.dumps(content)
    leaf = path.split(':')[0].rsplit('.')[-1]
    traced = key == 'options' and leaf in TRACED and content.get('dynamic')
    note = NOTE if key in NOTED or traced else ''
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


def keys(draft: Draft) -> tuple[str, str]:
    """Remove, repeat, rename or add a key, or exchange the values of two."""
    props = draft.model.metadata_props
    ours = [entry for entry in props if entry.key.startswith(PREFIX)]
    entry = draft.pick(entry for entry in ours if entry.key.removeprefix(PREFIX) not in NOTED)
    key, detail = entry.key, draft.pick(('removed', 'twice', 'renamed', 'added', 'exchanged'))
    if detail == 'removed':
        props.remove(entry)
    elif detail == 'twice':
        content, change = _changed(draft, _read(entry.value), '')
        props.add(key=key, value=json.dumps(content))
        place = draft.pick(('first', 'last'))
        if place == 'first':
            entry.value, props[-1].value = props[-1].value, entry.value
        detail = f'twice, the {place} one with {change}'
    elif detail == 'renamed':
        entry.key = f'{key}s'
    elif detail == 'added':
        name = draft.pick(name for name in UNKNOWN if PREFIX + name not in {other.key for other in props})
        props.add(key=PREFIX + name, value=json.dumps(UNKNOWN[name]))
        return name, 'added'
    else:
        other = draft.pick(other for other in ours if other.value != entry.value)
        entry.value, other.value = other.value, entry.value
        detail = f'exchanged with {other.key.removeprefix(PREFIX)}'
    return key.removeprefix(PREFIX), detail


UNKNOWN = dict(voxels=dict(max_voxels=7), camera=dict(order='BGR'), priority=1, thresholds=[0.5])
"""Keys that no file has, and that a runtime could prefer to others."""


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def edits(draft: Draft) -> tuple[str, str]:
    """Record a command that was not run, or that one node alone has, or run one that changes the model."""
    entry = draft.pick(entry for entry in draft.model.metadata_props if entry.key == f'{PREFIX}edits')
    name = draft.pick(EDITS)
    command, arguments = EDITS[name]
    record = json.dumps([*_read(entry.value), command])
    detail = 'recorded'
    if command == 'replace':
        detail = draft.pick(('recorded', 'recorded, one node has it', 'recorded and run'))
    if 'one node' in detail:
        old, new = name.split()[1::2]
        node = draft.pick(node for node in draft.main.node if node.op_type == old)
        node.op_type = new
        node.ClearField('attribute')
    elif command == 'replace':
        edited, reports = replace_all(draft.model, **arguments)
        if not any(report.count for report in reports):
            raise NoSite  # a record of nothing
        if 'run' in detail:
            draft.model.CopyFrom(edited)
    next(entry for entry in draft.model.metadata_props if entry.key == f'{PREFIX}edits').value = record
    return 'edits', f'{name} {detail}'


def _rule(text: str) -> tuple[str, dict[str, object]]:
    return 'replace', dict(rules=[text], named=[])


EDITS = {
    'simplify': ('simplify', {}),
    'convert-opset': ('convert-opset', dict(opset=18)),
    'replace Sigmoid by HardSigmoid': _rule('y = Sigmoid(x) -> y = HardSigmoid(x)'),
    'replace Relu by Sigmoid': _rule('y = Relu(x) -> y = Sigmoid(x)'),
    'replace Relu by LeakyRelu': _rule('y = Relu(x) -> y = LeakyRelu(x)'),
    'replace Relu by Clip': _rule('y = Relu(x) -> y = Clip(x, 0.0, 20.0)'),
    'set-shape': ('set-shape', dict(shapes='image=1x3x64x64')),
    'a command that nobody knows': ('polish', {}),
    'fp16': ('fp16', dict(io='fp32', keep_fp32=[])),
}
"""What is recorded -> the command and its arguments."""
