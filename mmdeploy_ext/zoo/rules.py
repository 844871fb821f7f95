"""What a proof that was done once rests on: the graph that was exported, and the code that judged it."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.versions import versions
from mmdeploy_ext.graph.same import signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.families.base import Family

PACKAGE = Path(__file__).resolve().parents[1]
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
JUDGES = ('compat', 'consumers', 'engines', 'families', 'models', 'proving', 'runtime')
"""Packages that a verdict comes from; with those of the family."""


def graph_digest(model: onnx.ModelProto) -> str:
    """Return a hash of how every output is computed, with all constants; names and order do not count."""
    found = signature(model)
    lines = [*found.interface, *(f'{count} {digest}' for digest, count in sorted(found.nodes.items()))]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def files_digest(models: Sequence[onnx.ModelProto]) -> str:
    """Return one hash of the graphs of an export, in their order; of one graph its own."""
    first, *others = (graph_digest(model) for model in models)
    return hashlib.sha256('\n'.join([first, *others]).encode()).hexdigest() if others else first


def proof_rules(family: Family) -> str:
    """Return a hash of the code that judges files of a family, and of the versions that it runs on.

    Comments and docstrings do not count: the hash is of what the code does.
    """
    own = Path(inspect.getfile(type(family))).resolve().parent
    digest = hashlib.sha256(repr(sorted(versions().items())).encode())
    for folder in (*(PACKAGE / name for name in JUDGES), own):
        digest.update(_code(folder).encode())
    return digest.hexdigest()


def read_code() -> None:
    """Read the code of all judges, which takes seconds; processes that are forked after know it."""
    for name in JUDGES:
        _code(PACKAGE / name)


@functools.cache
def _code(folder: Path) -> str:
    texts = []
    for path in sorted(folder.rglob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                del node.body[0]
        texts.append(f'{path.relative_to(folder)} {ast.dump(tree)}')
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()
