"""Operators of repositories that are not compiled here: which ones have a form in PyTorch, by their source.

A form is bound to the hash of the source that it replaces, and not to a name: `voxel_layer.dynamic_voxelize`
gives x first in some repositories, and z first in others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

NOT_COMPILED = (
    'it is not compiled, and its source has no form in PyTorch that is known: build the operators of the '
    'repository, or export the parts around it (--parts)'
)
SUFFIXES = ('.cpp', '.cc', '.cu', '.cuh')
NAMES = re.compile(r'(ext|_cuda|_C|_layer)$')
"""Ends of names of extensions."""
OPERATORS = 'mmdeploy_ext.compat.mmdet3d_operators'
"""Module of the forms."""

executed_operators: dict[str, None] = {}
"""Forms that ran in this process, for reports: 'bev_pool_v2_forward'."""


@dataclasses.dataclass(frozen=True)
class Form:
    """Functions in PyTorch for those of an extension.

    Attributes:
        sources: digests of the files that decide, see `digest_of`.
        functions: function of the extension -> name in `OPERATORS`, or a function.
    """

    sources: frozenset[str]
    functions: Mapping[str, str | Callable[..., Any]]


FORMS: list[Form] = [
    Form(
        frozenset(['c29f043caa7846b8', 'ba4222bc7611e78c']),  # bev_pool of mit-han-lab/bevfusion 326653d
        dict(bev_pool_forward='bev_pool_forward'),
    ),
    Form(
        frozenset(['b15c51f28a9260d9', 'a95df81d64bab827']),  # bev_pool_v2 of BEVDet f71858d
        dict(bev_pool_v2_forward='bev_pool_v2_forward'),
    ),
    Form(
        frozenset(['332967be2aeb8894', '8c3b4877b34ccd83']),  # voxels of bevfusion 326653d, x first
        dict(hard_voxelize='hard_voxelize', dynamic_voxelize='dynamic_voxelize'),
    ),
    Form(
        frozenset(['19801d86acef0697', 'c81ae15df7306116']),  # spconv 1.x of mmdet3d 0.17
        dict(
            get_indice_pairs_2d='get_indice_pairs',
            get_indice_pairs_3d='get_indice_pairs',
            indice_conv_fp32='indice_conv',
        ),
    ),
]


def digest_of(text: str) -> str:
    """Return 16 digits of the SHA-256 of a source in C++ or CUDA, without comments and white space."""
    code = re.sub(r'//[^\n]*|/\*.*?\*/', '', text, flags=re.DOTALL)
    return hashlib.sha256(re.sub(r'\s+', '', code).encode()).hexdigest()[:16]


def is_compiled(name: str, file: str) -> bool:
    """Whether a name that a file imports is an extension, whose sources are beside it."""
    if not _sources_near(file):
        return False
    for folder in Path(file).parents:
        setup = folder / 'setup.py'
        if setup.is_file():
            text = setup.read_text(encoding='utf-8', errors='replace')
            if re.search(rf'[\'"](?:[\w.]+\.)?{re.escape(name)}[\'"]', text):
                return True
        if (folder / '.git').exists():
            break
    return bool(NAMES.search(name))


def _sources_near(file: str) -> list[Path]:
    """Sources in C++ or CUDA below the folder of a file, or else below the folder above."""
    for folder in Path(file).parents[:2]:
        paths = [Path(path, name) for path, _, names in os.walk(folder) for name in names]
        if sources := [path for path in paths if path.suffix in SUFFIXES]:
            return sources
    return []


def functions_of(file: str) -> dict[str, Callable[..., Any]]:
    """Return the forms of the extension that a file imports, by the sources beside it."""
    return functions_of_sources(_sources_near(file))


def functions_of_sources(sources: Iterable[str | Path]) -> dict[str, Callable[..., Any]]:
    """Return function of an extension -> its form, for source files."""
    files = [Path(source) for source in sources if Path(source).is_file()]
    digests = {digest_of(file.read_text(encoding='utf-8', errors='replace')) for file in files}
    functions: dict[str, Callable[..., Any]] = {}
    for form in FORMS:
        if form.sources <= digests:
            functions |= {name: _noted(name, function) for name, function in form.functions.items()}
    return functions


def _noted(name: str, form: str | Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        executed_operators[name] = None
        function = getattr(importlib.import_module(OPERATORS), form) if isinstance(form, str) else form
        return function(*args, **kwargs)

    return run
