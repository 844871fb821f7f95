"""The order of the packages: each imports from those before it alone, and no two files import in a ring."""

import ast
import functools
from pathlib import Path

import networkx
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = 'mmdeploy_ext'
ORDER = (
    'core',
    'inputs',
    'contract',
    'compare',
    'graph',
    'engines',
    'sparse',
    'runtime',
    'stack',
    'weights',
    'exporting',
    'families',
    'deploy',
    'evaluate',
    'quantize',
    'proof',
    'benchmark',
    'lint',
    'apps',
)


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    name = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
    return name.removesuffix('.__init__')


@functools.lru_cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted((REPOSITORY / PACKAGE).rglob('*.py'))}


def named(node: ast.AST) -> list[str]:
    """Return the modules that a statement or a call of import_module may mean."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [name for alias in node.names for name in (f'{node.module}.{alias.name}', node.module)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]  # engines and runtimes are imported by name
    return []


@functools.lru_cache
def imports() -> dict[str, frozenset[str]]:
    """Return module -> modules that it imports: at its top, lazily, for types, or by a string."""
    assert not rings()


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('import mmdeploy_ext.core.files', 'mmdeploy_ext.core.files'),
        ('def f():\n    from mmdeploy_ext.core import files', 'mmdeploy_ext.core.files'),
        ('from mmdeploy_ext.core.files import read_json', 'mmdeploy_ext.core.files'),
        ("import_module('mmdeploy_ext.core.files')", 'mmdeploy_ext.core.files'),
    ],
)
def test_every_way_to_import_is_seen(text, expected):
    targets = [target for node in ast.walk(ast.parse(text)) for target in named(node)]
    assert expected in targets
