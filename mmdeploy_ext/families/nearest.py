"""What a detector is made of, by the names in its config, and which family that is exported is nearest."""

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

from mmdeploy_ext.core.errors import ConfigError

PARTS = ('head', 'decoder', 'transformer', 'middle_encoder', 'lidar_encoder')
"""What the keys of parts end in that decide a family; backbones and necks do not."""
ADVICE = 'the families and their configs are in README.md'


class Described(Protocol):
    """What a family says about itself: see `Family`."""

    name: str
    exports: str
    near: tuple[str, ...]


def part_types(model: Any, prefix: str = '') -> dict[str, str]:
    """Return key -> type name of the heads of a `model`, wherever they are: `roi_head.bbox_head`."""
    found: dict[str, str] = {}
    for key, value in model.items() if isinstance(model, dict) else ():
        for part in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(part, dict):
                continue
            path = f'{prefix}{key}'
            if str(key).endswith(PARTS) and part.get('type'):
                found.setdefault(path, str(part['type']))
            found = part_types(part, f'{path}.') | found
    return found


def refusal(cfg: Any, families: Sequence[Described], what: str) -> ConfigError:
    """Return the error of a config that no family claims: its parts, the nearest family, what to do.

    `what` it does not have, e.g. 'belongs to no family that mm2onnx exports'.
    """
    model = cfg.get('model')
    parts = part_types(model)
    shown = [f'{key}={parts[key]!r}' for key in sorted(parts, key=lambda key: (key.count('.'), key))]
    heads = f'with {", ".join(shown)}' if shown else 'without a head'
    names = [str(model.get('type') or ''), *parts.values()]
    by_name = sorted(families, key=lambda family: family.name)  # of equally similar ones the first by name
    best = max(by_name, key=lambda family: _similarity(family, names), default=None)
    near = f'nearest is {best.name}: {best.exports}; ' if best is not None and best.exports else ''
    known = ', '.join(sorted(family.name for family in families))
    return ConfigError(
        f'{cfg.filename}: model.type={model.get("type")!r} {heads} {what}; {near}use such a config, or write '
        f'a family for this one (docs/own-family.md); {ADVICE}; known: {known}'
    )


def _similarity(family: Described, names: Sequence[str]) -> tuple[float, float]:
    """Return how similar a family is to names: the longest of its own words in them, then the similarity."""
    pairs = [(word.lower(), name.lower()) for word in (family.name, *family.near) for name in names]
    inside = [len(word) for word, name in pairs if word in name]
    alike = [difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs]
    return float(max(inside, default=0)), max(alike, default=0.0)
