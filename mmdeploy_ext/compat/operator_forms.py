"""Forms in PyTorch of compiled operators, found by the source of the operator that they replace.

A name says too little: `voxel_layer.dynamic_voxelize` gives x first in one repository and z first in another,
drops points outside of the grid or moves them into it. The hash is of the function that the extension binds
and of all that it calls, so that neighbours, comments and line breaks do not count.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = ('.cc', '.cpp', '.cu', '.cuh', '.h', '.hpp')
FOLDERS_ABOVE = 3
"""Folders above a file that imports an extension whose sources may hold it."""
HASH_DIGITS = 12
BINDING = r'\.def\(\s*"{}"\s*,\s*&?\s*([\w:]+)'
FUNCTION = re.compile(r'(\w+)\s*\(')
BODY = re.compile(r'\s*(?:const|noexcept)?\s*\{')
CLASS = re.compile(r'\b(?:struct|class)\s+(\w+)[^;{}()=]*\{')
CONSTANT = re.compile(r'^(?:\w+ +)*?const(?:expr)? +(?:\w+ +)*(\w+) *=[^;]*;', re.MULTILINE)
MACRO = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)(?:.*\\\n)*.*$', re.MULTILINE)
MODULE = 'PYBIND11_MODULE'
ENDS_OF_NAMES = re.compile(r'(ext|_cuda|_C|_layer)$')
"""Of names of extensions."""
KEYWORDS = ('if', 'for', 'while', 'switch', 'catch', 'return')

NOT_COMPILED = (
    'it is not compiled, and has no form in PyTorch: build the operators of the repository, or export the '
    'parts around it (--parts)'
)
executed_operators: dict[str, None] = {}
"""Operators whose form ran in this process, for reports: 'dynamic_voxelize (source 9c96d5c3852a)'."""


def is_compiled(name: str, file: str) -> bool:
    """Whether a name that a Python file imports is an extension, whose sources are near it."""
    if not sources_near(Path(file)):
        return False
    for folder in Path(file).resolve().parents:
        setup = folder / 'setup.py'
        if setup.is_file():
            text = setup.read_text(encoding='utf-8', errors='replace')
            if re.search(rf'[\'"](?:[\w.]+\.)?{re.escape(name)}[\'"]', text):
                return True
        if (folder / '.git').exists():
            break
    return bool(ENDS_OF_NAMES.search(name))


def functions_of(file: str) -> dict[str, Callable[..., Any]]:
    """Operator -> its form, for the extensions whose sources are near a Python file that imports them."""
    return functions_of_sources(sources_near(Path(file)))


def functions_of_sources(sources: Iterable[str | Path]) -> dict[str, Callable[..., Any]]:
    """Operator that C++ and CUDA files bind -> its form, where there is one; calls are noted."""
    paths = [path for path in map(Path, sources) if path.is_file()]
    names = {name for path in paths for name in re.findall(BINDING.format(r'(\w+)'), _text(path))}
    forms_of_names = {name: form_of(paths, name) for name, _ in names}
    return {name: form for name, form in forms_of_names.items() if form is not None}


def form_of(sources: Sequence[Path], operator: str) -> Callable[..., Any] | None:
    """Form of the operator that C++ and CUDA files bind to a name, or None; calls are noted."""
    from mmdeploy_ext.compat.mmdet3d_operators import FORMS  # it needs PyTorch

    digest = source_hash(sources, operator)
    form = FORMS.get(operator, {}).get(digest)
    if form is None:
        return None

    return noted(f'{operator} (source {digest})', form)


def noted(title: str, form: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes its calls in `executed_operators`."""

    def in_pytorch(*args: Any, **options: Any) -> Any:
        executed_operators[title] = None
        return form(*args, **options)

    return in_pytorch


def missing(file: str, operator: str) -> str:
    """Why an operator of an extension that a Python file imports has no form."""
    sources = sources_near(Path(file))
    digest = source_hash(sources, operator)
    if not digest:
        return f'no one source of {operator} was found, and forms are chosen by their source'
    return f'{operator} of {_binding_files(sources, operator)[0]} (source {digest}) is unknown'


def sources_near(file: Path) -> list[Path]:
    """C++ and CUDA files of extensions, below a Python file's folder or one above.

    Folders above count while they are packages or have a setup.py.
    """
    for folder in file.resolve().parents[: FOLDERS_ABOVE + 1]:
        is_package = any((folder / name).is_file() for name in ('__init__.py', 'setup.py'))
        if folder != file.resolve().parent and not is_package:
            break
        files = sorted(path for path in folder.rglob('*') if path.suffix in SUFFIXES and path.is_file())
        if any(MODULE in _text(path) for path in files):
            return files
    return []


def source_hash(sources: Sequence[Path], operator: str) -> str:
    """First digits of the SHA-256 of an operator's function and all that it calls.

    '' unless one extension binds the operator; the files of several have to be in folders of their own.
    """
    bound = _binding_files(sources, operator)
    if len(bound) != 1:
        return ''
    is_alone = sum(MODULE in _text(path) for path in sources) == 1
    own = [path for path in sources if is_alone or path.parent == bound[0].parent]
    found = re.search(BINDING.format(operator), _text(bound[0]))
    definitions = _definitions(tuple(own))
    called: dict[str, list[str]] = {}
    waiting = [found[1].rpartition('::')[2]]
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in called:
            called[name] = definitions[name]
            waiting += re.findall(r'\w+', ' '.join(definitions[name]))
    texts = sorted(''.join(text.split()) for texts in called.values() for text in texts)
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:HASH_DIGITS] if texts else ''


def _binding_files(sources: Sequence[Path], operator: str) -> list[Path]:
    return [path for path in sources if re.search(BINDING.format(operator), _text(path))]


@functools.lru_cache(maxsize=512)
def _text(path: Path) -> str:
    """Text of a C++ file without comments."""
    return re.sub(r'/\*.*?\*/|//[^\n]*', '', path.read_text('utf-8', errors='replace'), flags=re.DOTALL)


@functools.lru_cache(maxsize=64)
def _definitions(sources: tuple[Path, ...]) -> dict[str, list[str]]:
    """Name -> texts of the functions, classes, macros and constants that define it."""
    definitions: dict[str, list[str]] = {}
    for text in map(_text, sources):
        for pattern in (CONSTANT, MACRO):
            for found in pattern.finditer(text):
                definitions.setdefault(found[1], []).append(found[0])
        for name, definition in _blocks(text):
            definitions.setdefault(name, []).append(definition)
    return definitions


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    for found in FUNCTION.finditer(text):
        body = BODY.match(text, _end(text, found.end() - 1, '(', ')'))
        if body and found[1] not in KEYWORDS:
            yield found[1], text[found.start() : _end(text, body.end() - 1, '{', '}')]
    for found in CLASS.finditer(text):
        yield found[1], text[found.start() : _end(text, found.end() - 1, '{', '}')]


def _end(text: str, start: int, opening: str, closing: str) -> int:
    """Place behind the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(f'[{re.escape(opening + closing)}]').finditer(text, start):
        depth += 1 if found[0] == opening else -1
        if not depth:
            return found.end()
    return len(text)
