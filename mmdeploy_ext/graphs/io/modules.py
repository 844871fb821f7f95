"""The module of the PyTorch model that a node was exported from. Needs onnx only.

Three sources, tried in this order:
- metadata of the torch.export-based exporter: `pkg.torch.onnx.name_scopes`;
- node names of the TorchScript exporter: '/backbone/layer1/layer1.0/conv1/Conv';
- names of weights: a node that reads 'backbone.stem.conv.weight' belongs to 'backbone.stem.conv'. Older
  exporters and other frameworks leave only these.
"""

import ast
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx

SCOPES = 'pkg.torch.onnx.name_scopes'
WEIGHTS = ('weight', 'bias', 'running_mean', 'gamma', 'in_proj_weight')
"""Last parts of names of weights."""
WRAPPER = 'model'
"""The attribute of the export wrappers that holds the detector; the paths of checkpoints begin below it."""


def module_of(node: onnx.NodeProto) -> tuple[str, str]:
    """Return (module name, source of the name), e.g. ('backbone.layer1.0.conv1', 'names')."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                scopes = None
            is_list = isinstance(scopes, list) and len(scopes) >= 2
            return (str(scopes[-2]) if is_list else ''), 'metadata'  # the last scope is the operation itself
    if '/' in node.name:
        return '.'.join(without_repetition(node.name.split('/')[:-1])), 'names'
    for name in node.input:
        module, dot, last = name.rpartition('.')
        if dot and last in WEIGHTS:
            return module, 'weights'
    return '', ''


def without_repetition(parts: Iterable[str]) -> list[str]:
    """Drop empty parts and containers that the next part repeats."""
    words: list[str] = []
    for part in filter(None, parts):
        if words and part.startswith(f'{words[-1]}.'):
            words.pop()
        words.append(part)
    return words


def plain_path(path: str) -> str:
    """Return a module's path below the detector, as in the keys of checkpoints."""
    parts = path.split('.')
    return '.'.join(parts[parts.index(WRAPPER) + 1 :]) if WRAPPER in parts else path


def module_path(node: onnx.NodeProto, modules: Collection[str] | None = None) -> str:
    """Return the path of a node's module, '' if unknown, from TorchScript's name or dynamo's metadata.

    `network/backbone/layer1/layer1.0/relu_1/Relu` is the second call of `backbone.layer1.0.relu`. With
    `modules`, the paths of the model's modules, the result is one of them (the nearest module around the
    node) or ''. None keeps numbers of calls and stages ('network').
    """
    path, source = module_of(node)
    if source == 'metadata':
        return plain_path(path)
    parts = without_repetition(node.name.split('/')[:-1])
    if modules is None:
        return plain_path('.'.join(parts))
    return _resolve(tuple(parts), frozenset(modules))


@functools.lru_cache(maxsize=4096)
def _resolve(parts: tuple[str, ...], modules: frozenset[str]) -> str:
    for path in _possible_paths(parts):
        if path in modules:
            return path
        longer = [module for module in modules if module.endswith(f'.{path}')]
        if len(longer) == 1:
            return longer[0]
    return ''


def _possible_paths(parts: Sequence[str]) -> Iterator[str]:
    for end in range(len(parts), 0, -1):
        for start in range(end):
            path = '.'.join(parts[start:end])
            yield plain_path(path)
            yield plain_path(re.sub(r'_\d+$', '', path))
            yield plain_path('.'.join(re.sub(r'_\d+$', '', part) for part in parts[start:end]))
