"""The order of the packages: each imports from those before it alone, and no two files import in a ring."""

import ast
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import networkx
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = 'mmdeploy_ext'
ORDER = (
    'core',
    'preprocess',
    'contract',
    'graph',
    'engines',
    'sparse',
    'runtime',
    'compat',
    'weights',
    'tasks',
    'exporting',
    'models',
    'synthetic',
    'families',
    'consumers',
    'evaluate',
    'quantize',
    'lint',
    'proving',
    'kit',
    'benchmark',
    'seeded',
    'zoo',
    'api',
    'cli',
    '__main__',
)
"""Packages; each imports from those before it alone."""
REGISTRY = 'mmdeploy_ext.families'
"""It imports nothing, and holds the names of modules as texts."""
PARTS = 'parts'
"""Of families/: what several families need."""
KNOW_FAMILIES = (
    f'{REGISTRY}.catalogue',
    f'{REGISTRY}.mmdet_plugin',
    f'{REGISTRY}.mmdet3d_plugin',
    *(f'{PACKAGE}.{name}.' for name in ('consumers', 'seeded')),
)
"""What registers families, and what is made for some of them."""
WRITTEN = {'mmdeploy_ext.weights.convert.mmdet3_model': {'mmdeploy_ext.models.mmdet'}}
"""Module -> modules that it writes into configs and does not import."""

LAZY = {
    'mmdeploy_ext': {
        'mmdeploy_ext.api',
        'mmdeploy_ext.contract.registry',
        'mmdeploy_ext.families.base',
        'mmdeploy_ext.proving.modules.proof',
        'mmdeploy_ext.runtime.opening',
    },
    'mmdeploy_ext.families.base': {'mmdeploy_ext.families.parts.upstream_layers'},
    'mmdeploy_ext.contract.registry': {
        'mmdeploy_ext.families.catalogue',
        'mmdeploy_ext.consumers',
    },
    'mmdeploy_ext.core.config': {'mmdeploy_ext.models.catalogue'},
}
"""Module -> modules that it imports later than itself: those of the public names, when one is used, the
catalogue of families and what all of them need, which are imported when the first family is looked up, and
that of models, when the first config is read."""

LONGEST = 3
"""How many classes of ours may derive from one another in a row."""
LOOPS = {
    'AutowareBevFormer',
    'AutowareStreamPetr',
    'ForkOnnx',
    'PetrBound',
    'PluginOnnx',
    'SparseEnd2EndOnnx',
}
"""Loops of other programs, which derive from the runtime of a family of cameras."""
LONGER = {'InstanceBoxes', 'LoadError', 'Mismatch', 'PictureDetections3D', *LOOPS}
"""Classes at the end of a longer row: two kinds of results with a field of their own, and an error that is
caught apart from others about files."""


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
        for node in [] if name == REGISTRY else ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            first = next((target for target in named(node) if target in modules()), None)
            mentioned |= {first} - {None, name} - WRITTEN.get(name, set())
        found[name] = frozenset(mentioned - LAZY.get(name, set()))
    return found


def package_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def test_every_package_has_its_place_in_the_order():
    assert {package_of(name) for name in modules()} - {''} == {*ORDER}
    loose = [name for name, path in modules().items() if name.count('.') == 1 and path.name != '__init__.py']
    assert loose == [f'{PACKAGE}.__main__', f'{PACKAGE}.api']


def test_packages_import_only_from_those_before_them():
    wrong = [
        f'{name} imports {target}'
        for name, targets in imports().items()
        for target in sorted(targets)
        if package_of(name) and package_of(target) and target != REGISTRY
        if ORDER.index(package_of(target)) > ORDER.index(package_of(name))
    ]
    assert not wrong, '\n'.join(wrong)


def family_of(module: str) -> str:
    """Return the family of a module below families/, or parts; nothing of what all families share."""
    place = module.removeprefix(f'{REGISTRY}.').split('.')[0]
    is_family = module.startswith(f'{REGISTRY}.') and (REPOSITORY / PACKAGE / 'families' / place).is_dir()
    return place if is_family else ''


def test_no_family_imports_another():
    wrong = [
        f'{name} imports {target}; what several families need is in {REGISTRY}.parts'
        for name, targets in imports().items()
        for target in sorted(targets)
        if family_of(name) and family_of(target) not in ('', PARTS, family_of(name))
    ]
    assert {family_of(name) for name in modules()} > {'', PARTS, 'dense', 'two_stage'}
    assert not wrong, '\n'.join(wrong)


def test_shared_code_imports_no_family():
    wrong = [
        f'{name} imports {target}'
        for name, targets in imports().items()
        for target in sorted(targets)
        if not family_of(name) and not name.startswith(KNOW_FAMILIES) and family_of(target) not in ('', PARTS)
    ]
    assert not wrong, '\n'.join(wrong)


def rings() -> list[list[str]]:
    """Return groups of modules that import each other."""
    graph = networkx.DiGraph((name, target) for name, targets in imports().items() for target in targets)
    return [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]


def test_no_modules_import_each_other():
    assert not rings()


def bases_of_classes(texts: Iterable[str]) -> dict[str, set[str]]:
    """Return name of a class -> the names of its bases among all classes of these sources."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for name, bases in re.findall(r'^ *class (\w+)(?:\(([^)]*)\))?:', text, re.M):
            found.setdefault(name, set()).update(re.findall(r'\w+(?=,|$|\[)', bases))
    return {name: {base for base in bases if base in found} - {name} for name, bases in found.items()}


def longest_row(name: str, bases: dict[str, set[str]]) -> list[str]:
    """Return the longest row of classes that derive from one another and begins with a class."""
    return [name, *max((longest_row(base, bases) for base in bases[name]), key=len, default=[])]


def longer_rows(texts: Iterable[str]) -> set[str]:
    """Return the classes of these sources at the end of a row of more than `LONGEST`."""
    bases = bases_of_classes(texts)
    return {name for name in bases if len(longest_row(name, bases)) > LONGEST}


def test_no_class_derives_from_three_others_in_a_row():
    assert longer_rows(path.read_text(encoding='utf-8') for path in modules().values()) == LONGER
    assert longer_rows(['class A:', 'class B(A):\nclass C(nn.Module, B):', 'class D(x.C, E[int]):']) == {'D'}


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
