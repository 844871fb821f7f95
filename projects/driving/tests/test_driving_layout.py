"""Order of the package: no system imports another, references are no runtimes, the core names no system."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

from mm2onnx_driving import SYSTEMS
from mmdeploy_ext.spec.registry import registered

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / 'projects/driving/mm2onnx_driving'
BLOCKED = """
import importlib, sys
for name in ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg'):
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
REFERENCES = 'model', 'reference', 'steps'
"""Modules of a system that PyTorch's side of a proof runs; beside these all classes `...Reference`."""
RUNTIME = 'runtime'
"""Module of a system that decodes a file's outputs; beside it all of `RUNTIME_FOLDERS`."""
RUNTIME_FOLDERS = 'mm2onnx_driving.common.runtime.', 'mmdeploy_ext.families.common.runtime.'
INPUT_CHECKS = 'border_points', 'camera_times', 'count_tokens', 'frustum_places', 'record_of'
"""Functions of a runtime that references call to refuse an input or for a note, not for compared values."""
NAMING = {'moved.py', 'spec/registry.py', 'families/no_family.py'}
"""Modules of the core that name the package: old names, and the advice to install it."""


def modules():
    """Return module -> its text."""
    return {
        '.'.join(path.relative_to(FOLDER.parent).with_suffix('').parts): path.read_text(encoding='utf-8')
        for path in FOLDER.rglob('*.py')
    }


def test_no_system_imports_another():
    wrong = [
        f'{name} imports {other}'
        for name, text in modules().items()
        if (own := name.split('.')[1]) in SYSTEMS
        for other in re.findall(r'mm2onnx_driving\.(\w+)', text)
        if other in SYSTEMS and other != own
    ]
    assert not wrong


def test_shared_code_names_no_system():
    shared = {name: text for name, text in modules().items() if name.split('.')[1] not in SYSTEMS}
    wrong = [
        f'{name} names {system}'
        for name, text in shared.items()
        for system in SYSTEMS
        if f'mm2onnx_driving.{system}' in text
    ]
    assert not wrong


def test_no_reference_uses_the_code_that_it_judges():
    """A proof would compare that code with itself; names, constants and checks of the input are allowed."""
    wrong, systems = [], set()
    for name, text in modules().items():
        system, *place = name.split('.')[1:]
        tree = ast.parse(text)
        judges = [
            one for one in tree.body if isinstance(one, ast.ClassDef) and one.name.endswith('Reference')
        ]
        if system in SYSTEMS and {*place} & {*REFERENCES}:
            judges = [tree]
        if not judges:
            continue
        systems.add(system)
        used = {one.id for judge in judges for one in ast.walk(judge) if isinstance(one, ast.Name)}
        for node in ast.walk(tree):
            module = (node.module or '') if isinstance(node, ast.ImportFrom) else ''
            if module.split('.')[-1] == RUNTIME or module.startswith(RUNTIME_FOLDERS):
                found = functions_of(module, node.names)
                wrong += [f'{name} calls {one} of {module}' for one in found if one in used]
    assert systems == {*SYSTEMS, 'autoware', 'common'}
    assert not wrong


def functions_of(module, names):
    source = ast.parse(inspect.getsource(importlib.import_module(module)))
    defined = {one.name for one in source.body if isinstance(one, ast.FunctionDef)} - {*INPUT_CHECKS}
    return [one.name for one in names if one.name in defined and not one.name.startswith('check_')]


def test_all_that_a_device_imports_needs_no_pytorch():
    rows = registered().values()
    used = [name for row in rows for name in (row.facts, row.runtime)]
    used += [program.loop for row in rows for program in row.contracts.values()]
    names = {one.partition(':')[0] for one in used if one.startswith(FOLDER.name)}
    names |= {name.removesuffix('.__init__') for name in modules() if name.endswith('.__init__')}
    names |= {name for name in modules() if '.runtime' in name or name.endswith('.contracts')}
    assert len(names) > 40
    done = subprocess.run([sys.executable, '-c', BLOCKED, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_core_names_the_package_only_to_have_it_installed():
    package = REPOSITORY / 'mmdeploy_ext'
    naming = [
        path
        for path in package.rglob('*.py')
        if re.search(r'\bmm2onnx_driving\b(?!/)', path.read_text(encoding='utf-8'))
    ]
    assert {path.relative_to(package).as_posix() for path in naming} <= NAMING
