"""Which PyTorch module a node was exported from, as its name or its metadata says. Needs no torch."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from mmdeploy_ext.graph.show import tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import onnx

WRAPPER = 'model'
"""The attribute of the export wrappers that holds the detector; the paths of checkpoints begin below it."""


def plain_path(path: str) -> str:
    """Return the path of a module below the detector, as checkpoints have it; others as they are."""
    parts = path.split('.')
    return '.'.join(parts[parts.index(WRAPPER) + 1 :]) if WRAPPER in parts else path


def module_of(node: onnx.NodeProto, known: Collection[str] | None = None) -> str:
    """Return the path of a module, '' where the node does not tell.

    - TorchScript writes it into the name, with a number for repeated calls:
      `network/backbone/layer1/layer1.0/relu_1/Relu` is the second call of `backbone.layer1.0.relu`.
    - dynamo writes it into the metadata of the node.

    Args:
        node: of the graph.
        known: paths that there are; None takes what the name says as it is.
    """
    path, source = tree.module_of(node)
    if source == 'metadata':
        return plain_path(path)
    parts = tree.without_repetition(node.name.split('/')[:-1])
    if known is None:
        return plain_path('.'.join(parts))
    return _resolve(tuple(parts), known if isinstance(known, frozenset) else frozenset(known))


@functools.lru_cache(maxsize=4096)
def _resolve(parts: tuple[str, ...], known: frozenset[str]) -> str:
    """Return the known path that a scope means; it may lack modules whose methods were called, not they."""
    readings = list(_readings(parts))
    for path in readings:
        if path in known:
            return path
        longer = [other for other in known if other.endswith(f'.{path}')]
        if len(longer) == 1:
            return longer[0]
    return ''


def _readings(parts: Sequence[str]) -> Iterator[str]:
    """Yield the paths that a scope may mean, longest first; `_2` behind a name may count calls."""
    for end in range(len(parts), 0, -1):
        for start in range(end):
            path = '.'.join(parts[start:end])
            yield plain_path(path)
            yield plain_path(re.sub(r'_\d+$', '', path))
            yield plain_path('.'.join(re.sub(r'_\d+$', '', part) for part in parts[start:end]))
