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
JUDGES = (
    'compat',
    'consumers',
    'engines',
    'families/*.py',
    'families/parts',
    'models',
    'proving',
    'runtime',
)
"""Code that a verdict of any family comes from: packages, and the files of one without its folders.

The folder of the family itself is hashed too; a change in one family leaves the proofs of others valid.
"""


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
    for pattern in JUDGES:
        digest.update(_code(PACKAGE, pattern).encode())
    digest.update(_code(own, '.').encode())
    return digest.hexdigest()


def read_code() -> None:
    """Read the code of all judges, which takes seconds; processes that are forked after know it."""
    for pattern in JUDGES:
        _code(PACKAGE, pattern)


@functools.cache
def _code(root: Path, pattern: str) -> str:
    """Return a hash of the Python files below `root` that a pattern names: `x/*.py` or a folder."""
    files = root.glob(pattern) if pattern.endswith('.py') else (root / pattern).rglob('*.py')
    texts = []
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                del node.body[0]
        texts.append(f'{path.relative_to(root)} {ast.dump(tree)}')
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()
