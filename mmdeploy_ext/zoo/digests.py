"""Hashes of what a proof rests on: the exported graph, and the code and versions that made and judged it."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.source_code import versions
from mmdeploy_ext.graph.signature import compute_signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.families.base import Family

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of this project's package."""
JUDGES = (
    'compat',
    'consumers',
    'contract',
    'core',
    'engines',
    'exporting',
    'families/*.py',
    'families/parts',
    'graph',
    'lint',
    'models',
    'preprocess',
    'proving',
    'runtime',
    'seeded',
    'sparse',
    'synthetic',
    'tasks',
    'weights',
)
"""Code that decides the weights, the constants of the graph and the verdict of every family.

Packages, and the files of `families` without its folders.

The folder of the family itself is hashed too; a change in one family leaves the proofs of others valid. Of
a family from outside it is the whole package that the family is in.
"""


def graph_digest(model: onnx.ModelProto) -> str:
    """Return a hash of how every output is computed, and of the names and types of inputs and outputs.

    Types have the sizes of axes; opsets and defaults of inputs count, too. Names and order of the nodes do
    not count, nor do names of inner tensors.

    Floating-point constants count by type and shape alone: seeded weights follow from runs of the network,
    and their last bits are other ones on another CPU. The code that `proof_rules` hashes decides the values.
    """
    graph = compute_signature(model)
    lines = [*graph.interface, *(f'{count} {digest}' for digest, count in sorted(graph.nodes.items()))]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def export_digest(models: Sequence[onnx.ModelProto]) -> str:
    """Return the hash of the graphs of an export in their order; of a single graph its own."""
    digests = [graph_digest(model) for model in models]
    return digests[0] if len(digests) == 1 else hashlib.sha256('\n'.join(digests).encode()).hexdigest()


def proof_rules(family: Family) -> str:
    """Return a hash of the code that makes and judges exports of a family, and of the libraries' versions.

    Comments, and docstrings of modules, classes and functions, do not count; texts below constants do.
    """
    digest = hashlib.sha256(repr(sorted(versions().items())).encode())
    for pattern in JUDGES:
        digest.update(code_digest(PACKAGE, pattern).encode())
    digest.update(code_digest(family_folder(type(family)), '.').encode())
    return digest.hexdigest()


def family_folder(family: type) -> Path:
    """Return the folder with the code of a family: its own, or the top-level package of one from outside.

    Of a module that is in no package it is the folder of its file.
    """
    file = Path(inspect.getfile(family)).resolve()
    folder = file.parent
    if folder.is_relative_to(PACKAGE):
        return folder
    packages = family.__module__.split('.')
    if file.stem != '__init__':
        packages.pop()
    for _ in packages[1:]:
        folder = folder.parent
    return folder


@functools.cache
def files_digest(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the Python and JSON files below a folder."""
    digest = hashlib.sha256()
    suffixes = 'py', 'json'
    files = [path] if path.is_file() else [file for suffix in suffixes for file in path.rglob(f'*.{suffix}')]
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f'{file.relative_to(path)} {len(content)} '.encode() + content)
    return digest.hexdigest()


def hash_judges() -> None:
    """Hash the code of `JUDGES`, which takes a second, so that forked processes have the hashes cached."""
    for pattern in JUDGES:
        code_digest(PACKAGE, pattern)


@functools.cache
def code_digest(root: Path, pattern: str) -> str:
    """Return a hash of the Python files below `root` that match a pattern: a folder, or `folder/*.py`.

    Comments and docstrings do not count.
    """
    files = root.glob(pattern) if pattern.endswith('.py') else (root / pattern).rglob('*.py')
    digest = hashlib.sha256()
    for path in sorted(files):
        name = str(path.relative_to(root))
        code = compile(path.read_bytes(), name, 'exec', dont_inherit=True, optimize=2)
        digest.update(f'{name} {_content(code)}'.encode())
    return digest.hexdigest()


def _content(code: types.CodeType) -> list[Any]:
    """Return the instructions and constants of code without its places in the file."""
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constants.append(_content(constant))
        else:  # a set has any order
            constants.append(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    instructions = np.frombuffer(code.co_code, '<u2')
    instructions = instructions[instructions != dis.opmap['NOP']]  # which a docstring leaves
    return [instructions.tobytes(), *names, *counts, *constants]
