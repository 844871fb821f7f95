"""The order of the packages: each imports from those before it alone, and no two files import in a ring."""

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = 'mmdeploy_ext'
ORDER = (
    'moved',
    'base',
    'spec',
    'graphs',
    'engines',
    'runtime',
    'upstream',
    'exporting',
    'families',
    'proving',
    'bench',
    'api',
    'cli',
    '__main__',
)
"""Rooms; each imports from those before it alone."""
KINDS = 'mmdeploy_ext.bench.kinds'
REGISTRY = 'mmdeploy_ext.families'
"""It imports nothing, and holds the names of modules as texts."""
COMMON = 'common'
SHARED = (COMMON, 'evaluate', 'synthetic')
"""Folders of families/: what several families need."""
WRITTEN = {'mmdeploy_ext.upstream.weights.convert.mmdet3_model': {'mmdeploy_ext.upstream.models.mmdet'}}
"""Module -> modules that it writes into configs and does not import."""
LAZY = {
    'mmdeploy_ext': {
        'mmdeploy_ext.api',
        'mmdeploy_ext.spec.registry',
        'mmdeploy_ext.proving.parts.api',
        'mmdeploy_ext.proving.parts.swap',
        'mmdeploy_ext.families.base',
        'mmdeploy_ext.proving.modules.proof',
        'mmdeploy_ext.runtime.detect',
    },
    'mmdeploy_ext.families.base': {'mmdeploy_ext.families.common.upstream_layers'},
    'mmdeploy_ext.spec.registry': {'mmdeploy_ext.families.catalogue'},
    'mmdeploy_ext.families.catalogue': {'mmdeploy_ext.families'},
    'mmdeploy_ext.base.config': {
        'mmdeploy_ext.upstream.models.catalogue',
        'mmdeploy_ext.upstream.weights.convert.mmdet3_config',
    },
    'mmdeploy_ext.upstream.weights.convert.mmdet3_config': {'mmdeploy_ext.families.base'},
}
"""Module -> modules that it imports later than itself: public names when one is used, the catalogue of
families when the first family is looked up, the catalogue of models when the first config is read, the
translation and the families when a config of mmdet 3 is read."""

OF_FILES = {
    'mmdeploy_ext.bench.benchmark.images',
    'mmdeploy_ext.cli.run_app',
    'mmdeploy_ext.graphs.passes.shapes',
    'mmdeploy_ext.bench.kit.judge',
    'mmdeploy_ext.bench.precision.calibration_sets',
    'mmdeploy_ext.runtime.detect',
}
"""Modules that know files alone, and ask their metadata for the kind of sample."""
WORDS = {
    'mmdeploy_ext.families.base': 'lists families of a product',
    'mmdeploy_ext.families.no_family': 'lists families of a kind of sample',
    'mmdeploy_ext.proving.not_shown': 'names pictures or samples',
    'mmdeploy_ext.proving.views.table': 'names the command of a product',
}
"""Module -> what the kind of sample or the product decides there, which is no function."""


@functools.lru_cache
def modules() -> dict[str, Path]:
    """Return dotted name of a module of the package -> its file."""
    paths = sorted((REPOSITORY / PACKAGE).rglob('*.py'))
    names = ['.'.join(path.relative_to(REPOSITORY).with_suffix('').parts) for path in paths]
    return {name.removesuffix('.__init__'): path for name, path in zip(names, paths, strict=True)}


IMPORT = re.compile(
    rf"""^\s*from\ ({PACKAGE}[\w.]*)\ import\ (\([^)]*\)|.*)  # names of a module or of a package
    |^\s*import\ ({PACKAGE}[\w.]*)
    |['"]({PACKAGE}[\w.]+)['"]  # for import_module""",
    re.MULTILINE | re.VERBOSE,
)


def mentioned(text: str) -> set[str]:
    """Return the modules that a source imports, at its top, lazily or for types, or names in a text."""
    found = set()
    for source, names, imported, named in IMPORT.findall(text):
        if source:
            members = re.sub(r'#.*| as \w+', '', names).strip('( )\n').replace('\n', ' ').split(',')
            paths = [f'{source}.{member.strip()}' for member in members]
            found |= {path if path in modules() else source for path in paths}
        found |= {imported, named} & modules().keys()
    return found & modules().keys()


@functools.lru_cache
def imports() -> dict[str, set[str]]:
    """Return module -> modules that it imports when it is imported itself, or later, but for `LAZY`."""
    return {
        name: mentioned(path.read_text(encoding='utf-8') if name != REGISTRY else '')
        - {name, *WRITTEN.get(name, ()), *LAZY.get(name, ())}
        for name, path in modules().items()
    }


def edges() -> list[tuple[str, str]]:
    return [(name, target) for name, targets in imports().items() for target in sorted(targets)]


def package_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def family_of(module: str) -> str:
    """Return the family of a module below families/, or 'common'; '' for code that all families share."""
    place = module.removeprefix(f'{REGISTRY}.').split('.')[0]
    is_family = module.startswith(f'{REGISTRY}.') and (REPOSITORY / PACKAGE / 'families' / place).is_dir()
    return place if is_family else ''


def test_packages_import_only_from_those_before_them():
    assert {package_of(name) for name in modules()} - {''} == {*ORDER}
    wrong = [
        f'{name} imports {target}'
        for name, target in edges()
        if package_of(name) and package_of(target) and target != REGISTRY
        if ORDER.index(package_of(target)) > ORDER.index(package_of(name))
    ]
    assert not wrong, '\n'.join(wrong)


def test_no_family_imports_another():
    assert {family_of(name) for name in modules()} > {'', COMMON, 'dense', 'two_stage'}
    wrong = [
        f'{name} imports {target}; what several families need is in {REGISTRY}.{COMMON}'
        for name, target in edges()
        if family_of(name) and family_of(target) not in ('', *SHARED, family_of(name))
    ]
    assert not wrong, '\n'.join(wrong)


def asked(tree: ast.AST) -> list[str]:
    """Return expressions OBJECT.samples and OBJECT.product that are compared, matched or looked up."""
    parts: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts += [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            parts.append(node.slice)
        elif isinstance(node, ast.Match):
            parts.append(node.subject)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'get':
            parts += node.args
    texts = [ast.unparse(part) for part in parts if getattr(part, 'attr', '') in ('samples', 'product')]
    return [text for text in texts if not text.startswith(('self.', 'args.'))]


def test_functions_are_chosen_by_the_kind_of_sample_in_kinds_alone():
    wrong, asking = [], set()
    for name, path in modules().items():
        text = path.read_text(encoding='utf-8')
        if name.startswith(KINDS) or not re.search(r'\.(samples|product)\b', text):
            continue
        found = asked(ast.parse(text))
        asking |= {name} if found else set()
        if name not in WORDS:
            allowed = 'metadata.samples' if name in OF_FILES else ''
            wrong += [f'{name} asks {one}; make it a method of Kind' for one in found if one != allowed]
    assert not wrong, '\n'.join(wrong)
    assert asking == OF_FILES | WORDS.keys()


def test_no_modules_import_each_other():
    TopologicalSorter(imports()).prepare()  # CycleError names the ring
