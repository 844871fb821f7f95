"""The order of the packages: each imports from those before it alone, and no two files import in a ring."""

import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from kind_questions import Questions

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
EXPLAINED = {
    r'\bTies\(': ['proving.explain'],
    r'\bwithout_limits\(': ['proving.explain'],
    r'proving\.float64 import': ['proving.explain', 'proving.difference'],
}
"""What explains a difference -> the modules that name it."""
OVER_SAMPLES = {
    'proving.loop': 'the loop',
    'proving.modules': 'runs the module on all samples first: what varies tells ties from constants',
    'proving.parts.record': 'records the calls of parts',
}
"""Module of proving -> why it iterates over samples."""
LAZY = {
    'mmdeploy_ext': {
        'mmdeploy_ext.api',
        'mmdeploy_ext.spec.registry',
        'mmdeploy_ext.proving.parts.proof',
        'mmdeploy_ext.proving.parts.swap',
        'mmdeploy_ext.families.base',
        'mmdeploy_ext.proving.modules',
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

OWNERS = (KINDS, 'mmdeploy_ext.families.base', 'mmdeploy_ext.spec.metadata')
"""Modules that say what the kinds are."""
OF_FILES = {
    'mmdeploy_ext.bench.benchmark.images',
    'mmdeploy_ext.bench.kit.judge',
    'mmdeploy_ext.bench.precision.calibration_sets',
    'mmdeploy_ext.cli.run_app',
    'mmdeploy_ext.cli.run_images',
    'mmdeploy_ext.graphs.passes.shapes',
    'mmdeploy_ext.runtime.detect',
}
"""Modules that know files alone, and ask their metadata for the kind of sample."""
ASKING = {
    'mmdeploy_ext.families.evaluate.backend_config': 'a memory has a key of its own',
    'mmdeploy_ext.proving.against_dump': 'the state before a dumped frame',
    'mmdeploy_ext.proving.frames': 'samples of a recording are a drive',
    'mmdeploy_ext.proving.not_shown': 'names pictures or samples',
    'mmdeploy_ext.proving.views.table': 'names the command of a product',
}
"""Module -> what the kind of sample, the product or the memory of a family decides there."""


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


def test_ties_limits_and_float64_are_named_where_differences_are_explained():
    for words, places in EXPLAINED.items():
        found = {
            name
            for name, path in modules().items()
            if package_of(name) in ('proving', 'bench') and re.search(words, path.read_text(encoding='utf-8'))
        }
        assert found == {f'{PACKAGE}.{place}' for place in places}, words


def test_a_proof_iterates_over_samples_in_the_loop():
    found = {
        name.removeprefix(f'{PACKAGE}.')
        for name, path in modules().items()
        if package_of(name) == 'proving' and re.search(r'\btracked\(', path.read_text(encoding='utf-8'))
    }
    assert found == OVER_SAMPLES.keys()


def test_the_loop_of_proofs_and_the_kits_subject_need_numpy_alone():
    code = (
        'import sys; sys.modules.update(torch=None, mmcv=None, onnx=None); '
        'import mmdeploy_ext.proving.loop, mmdeploy_ext.bench.kit.judge'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=REPOSITORY)


def test_no_family_imports_another():
    assert {family_of(name) for name in modules()} > {'', COMMON, 'dense', 'two_stage'}
    wrong = [
        f'{name} imports {target}; what several families need is in {REGISTRY}.{COMMON}'
        for name, target in edges()
        if family_of(name) and family_of(target) not in ('', *SHARED, family_of(name))
    ]
    assert not wrong, '\n'.join(wrong)


def test_the_kind_of_a_family_or_file_is_asked_where_it_is_said_alone():
    found = Questions({name: path.read_text(encoding='utf-8') for name, path in modules().items()}).found()
    found = {name: facts for name, facts in found.items() if not name.startswith(OWNERS)}
    wrong = [
        f'{name} asks {", ".join(sorted(facts))}; make it data or a method of Kind or of the family'
        for name, facts in found.items()
        if name not in ASKING and not (name in OF_FILES and facts == {'Metadata.samples'})
    ]
    assert not wrong, '\n'.join(wrong)
    assert found.keys() == OF_FILES | ASKING.keys()  # a row without a question goes


CLASSES = """
class Family: pass
class LidarFamily(Family): pass
class Metadata: pass
class Detector:
    family: LidarFamily
def find(cfg) -> Family: pass
def asked(family: Family, families: list[Family], detector: Detector, device: Device):
    """


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('if family.memory: pass', 'Family.memory'),
        ('run = one if detector.family.samples == "frames" else two', 'Family.samples'),
        ('has_memory = family.memory\n    if ready and not has_memory: pass', 'Family.memory'),
        ('judge(family.samples)\ndef judge(kind): return kind == "sweeps"', 'Family.samples'),
        ('RUNS[find(cfg).product]', 'Family.product'),
        ('alike = [one for one in sorted(families) if one.memory]', 'Family.memory'),
        ('match Metadata.from_props(props).samples:\n        case _: pass', 'Metadata.samples'),
        ('if device.memory and detector.samples: pass', None),
        ('print(family.memory)', None),
    ],
)
def test_a_question_is_found_by_what_its_name_is_bound_to(text, expected):
    assert Questions({'one': CLASSES + text}).found() == ({'one': {expected}} if expected else {})


def test_no_modules_import_each_other():
    TopologicalSorter(imports()).prepare()  # CycleError names the ring
