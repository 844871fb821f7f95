"""Wrong metadata, drawn with a seed: every value of every entry replaced by what no file of ours says."""

import copy
import json
import random

import onnx

VALUES = [
    *(None, True, False, 0, -1, 1, 7, -3.5, 0.0, 1e-30, 1e30, 10**18, 10**400),
    *(float('nan'), float('inf'), -float('inf'), '', 'x', 'raw', '\x00', 'ü' * 200),
    *([], [0], [1, 2], [-1, -1, -1], [float('nan')] * 3, [[]], ['a', 'b', 'c', 'd'], [0] * 5000),
    *({}, {'x': 1}, {'': None}),
]
NO_JSON = ['', '{', 'nan', "{'a': 1}", '[1,', '\ufeff1', '[' * 100_000, '"\\ud800', '1' * 5000]


def places(value, path=()):
    """Yield the path of a JSON value and of all values below it."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    )
    for key, item in children:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    """Return a JSON value with another one at a path."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def without(value, path):
    """Return a JSON value without the entry at a path."""
    changed = copy.copy(value)
    if len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = without(value[path[0]], path[1:])
    return changed


def variants(props, count, seed, only=()):
    """Yield `count` (entry, what was done, metadata) of the metadata of a right file.

    Every entry, or each of `only`, is drawn as often as every other, and within it every place.
    """
    rng = random.Random(seed)
    keys = sorted(key for key in props if key.startswith('mm2onnx.') and (not only or key[8:] in only))
    for number in range(count):
        key = keys[number % len(keys)]
        value = json.loads(props[key])
        if rng.random() < 0.1:
            text = rng.choice(NO_JSON)
            yield key, f'text {text[:20]!r}', {**props, key: text}
            continue
        path = rng.choice(list(places(value)))
        if path and rng.random() < 0.2:
            changed, said = without(value, path), 'gone'
        else:
            new = rng.choice(VALUES)
            changed, said = replaced(value, path, new), repr(new)[:40]
        yield key, f'{path}: {said}', {**props, key: json.dumps(changed)}
    for key in keys:
        yield key, 'is missing', {name: text for name, text in props.items() if name != key}


def props_of(model):
    """Return the metadata of a model as a dict."""
    return {entry.key: entry.value for entry in model.metadata_props}


def write(model, props, path):
    """Write a model with other metadata."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString())
    return path
