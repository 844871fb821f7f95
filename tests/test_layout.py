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
    'zoo',
    'apps',
    '__main__',
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
    found = {}
    for name, path in modules().items():
        mentioned = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            first = next((target for target in named(node) if target in modules()), None)
            mentioned |= {first} - {None, name}
        found[name] = frozenset(mentioned)
    return found


def package_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def test_every_package_has_its_place_in_the_order():
    packages = {package_of(name) for name in modules()} - {''}
    assert packages == set(ORDER)
    loose = [name for name, path in modules().items() if name.count('.') == 1 and path.name != '__init__.py']
    assert loose == [f'{PACKAGE}.__main__']


def test_packages_import_only_from_those_before_them():
    rank = {package: index for index, package in enumerate(ORDER)}
    wrong = [
        f'{name} imports {target}'
        for name, targets in imports().items()
        for target in sorted(targets)
        if package_of(name) and package_of(target) and rank[package_of(target)] > rank[package_of(name)]
    ]
    assert not wrong, '\n'.join(wrong)


def rings() -> list[list[str]]:
    """Return groups of modules that import each other."""
    graph = networkx.DiGraph((name, target) for name, targets in imports().items() for target in targets)
    return [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]


def test_no_modules_import_each_other():
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
