"""Write which methods the graphs of each family follow, of the installed libraries.

`python docs/_pages/replaced_methods.py` prints the methods whose hashes changed and writes the tables
`mmdeploy_ext/families/*/replaced_methods.json`. With `FILE.py CLASS.METHOD ...` it prints the hashes of these
methods, for a table that follows a fork as well.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
    from mmdeploy_ext.families.replaced import Table


def merged(table: Table, installed: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Return a table with the installed versions first, and what else it followed, of forks, behind them."""
    result = {
        kind: {name: list(hashes) for name, hashes in methods.items()} for kind, methods in table.items()
    }
    for kind, methods in installed.items():
        for method, digest in methods.items():
            hashes = result.setdefault(kind, {}).setdefault(method, [])
            result[kind][method] = [digest, *(entry for entry in hashes if entry != digest)]
    return {kind: dict(sorted(methods.items())) for kind, methods in sorted(result.items())}


def text_of(table: Table) -> str:
    """Return a table as JSON, one method per line."""
    classes = []
    for kind, methods in table.items():
        lines = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(hashes)}' for name, hashes in methods.items())
        classes.append(f' {json.dumps(kind)}: {{\n{lines}\n }}')
    return '{\n' + ',\n'.join(classes) + '\n}\n'


def write_tables() -> None:
    """Write the tables of all families, and print what changed."""
    from mmdeploy_ext import compat

    compat.apply()
    from mmdeploy_ext.families import replaced
    from mmdeploy_ext.families.base import FAMILIES, LAYERS_FOLDER, load_families

    load_families()
    installed = {LAYERS_FOLDER: replaced.installed_hashes((*replaced.LAYERS, *replaced.SIZED_LAYERS))}
    for family in FAMILIES.values():
        if family.followed:
            folder = replaced.folder_of(family)
            installed.setdefault(folder, {}).update(replaced.installed_hashes(family.followed))
    for folder, methods in sorted(installed.items()):
        table = replaced.table_of(folder)
        for line in replaced.changed_hashes(table, methods):
            print(f'{folder.name}: {line}')
        (folder / replaced.TABLE).write_text(text_of(merged(table, methods)), encoding='utf-8')


def print_hashes(path: str, names: Sequence[str]) -> None:
    """Print the hash of methods of a file that need not be importable, such as `Head.forward`."""
    from mmdeploy_ext.core.source_code import code_sha256
    from mmdeploy_ext.families.replaced import DIGITS

    for name in names:
        definition: ast.AST | None = ast.parse(Path(path).read_bytes())
        for part in name.split('.'):
            definition = next(
                (child for child in ast.walk(definition) if getattr(child, 'name', None) == part), None
            )
            if definition is None:
                raise SystemExit(f'{path}: has no {name}')
        print(f'{name}: {code_sha256(definition)[:DIGITS]}')


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        print_hashes(sys.argv[1], sys.argv[2:])
    else:
        write_tables()
