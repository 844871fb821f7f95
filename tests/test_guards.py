"""Rules of the house that hold for the whole tree; each test says which."""

import ast
import contextlib
import fnmatch
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LARGEST_FILE = 8_000_000
PARTS = ('mmdeploy_ext', 'projects', 'tools')
RUNNER_PARTS = (
    'core',
    'preprocess',
    'contract',
    'proving.tensors',
    'engines.onnxruntime',
    'runtime',
    'consumers',
    'families.*.options*',
    'families.*.facts',
    'families.*.runtime',
)
TORCH_FREE = (
    *RUNNER_PARTS,
    'graph',
    'engines.base',
    'engines.registry',
    'cli.options',
    'proving.provenance',
    'graph.diff.files',
    'proving.difference.report',
    'proving.views.charts',
)
TRACED = ('/export.py', '_export.py', 'tensorrt_plugins/operators.py')
"""Ends of the names of modules of other programs that make graphs, in the parts without torch."""
ABOVE = dict(mmdeploy_ext={'projects', 'tools', 'tests'}, projects={'tools', 'tests'}, tools={'tests'})
DISTRIBUTIONS = ('projects/mmrotate/',)
"""Packages that are installed by themselves, with tests of their own."""
STACK = ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg')
BLOCKED = """
import importlib, runpy, sys
missing = sys.argv[1].split(',')
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in missing:
            raise ModuleNotFoundError('blocked: ' + name, name=name)
sys.meta_path.insert(0, Blocker())
"""
IMPORT_ALL = BLOCKED + 'for name in sys.argv[2:]: importlib.import_module(name)\n'
HELPS = (
    BLOCKED
    + """
import contextlib, io, json
texts = {}
for script in sys.argv[2:]:
    sys.argv = [script, '--help']
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(script, run_name='__main__')
            status = 'the script went on after its help'
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = f'{type(error).__name__}: {error}'
    texts[script] = status, output.getvalue(), errors.getvalue()
print(json.dumps(texts))
"""
)
PRIVATE = [
    re.compile(pattern)
    for pattern in (
        rb'/work' + rb'/',
        rb'/root' + rb'/',
        rb'/home' + rb'/[a-z]\w*/',
        rb'/tmp' + rb'/try',
        rb'file:' + rb'///',
        rb'10\.(?<!\w10\.)\d{1,3}\.\d{1,3}\.\d{1,3}\b',
        rb'192\.168\.(?<!\w192\.168\.)\d{1,3}\.\d{1,3}\b',
        rb'172\.(?<!\w172\.)(?:1[6-9]|2\d|3[01])\.\d{1,3}\.\d{1,3}\b',
        rb'https?://[\w.-]+\.(?:internal|local|lan|corp|intranet)\b',
    )
]
"""Each begins with a text, which `re` searches for five times faster than for one of several."""


@functools.lru_cache
def tracked(suffix: str = '') -> list[str]:
    """Return the files that git tracks and that are there."""
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('not a git checkout')
    names = [name for name in done.stdout.split('\0') if name.endswith(suffix)]
    return [name for name in names if (REPOSITORY / name).is_file()]


@functools.cache  # of all files, which several rules read
def syntax(name: str) -> ast.Module:
    return ast.parse((REPOSITORY / name).read_text(encoding='utf-8'), name)


@functools.cache
def nodes(name: str) -> list[ast.AST]:
    """Return all nodes of a file."""
    return list(ast.walk(syntax(name)))


@pytest.fixture(scope='module', autouse=True)
def _forgotten():
    """Forget the trees of all files when these tests end: they are millions of objects."""
    yield
    for function in (syntax, nodes, exporter_calls):
        function.cache_clear()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, in the repository."""
    command = [sys.executable, '-c', code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


# ---- configs

# functions that configs call
FUNCTIONS = (
    'bevformer_model.py',
    'monocular.py',
    'nuscenes_bev.py',
    'nuscenes_fusion.py',
    'nuscenes_lidar.py',
    'nuscenes_stream.py',
    'nuscenes_track.py',
    'petr_model.py',
    'sparse4d_model.py',
)
CONFIGS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ('configs', 'projects/configs')
    for path in (REPOSITORY / folder).rglob('*.py')
    if path.name not in FUNCTIONS
)


@functools.lru_cache
def build(model: str) -> list[str]:
    """Build a model, given as the text of a dict, and return the names of its parameters; draws no values."""
    import torch
    from mmcv import Config
    from mmcv.ops import ModulatedDeformConv2d, MultiScaleDeformableAttention
    from torch.nn import init

    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.models.rtdetr.attention import DeformableAttention

    cfg = Config(ast.literal_eval(model))
    place = torch.device('cpu' if 'SwinTransformer' in model else 'meta')  # it reads rates from a tensor
    drawing = [name for name in vars(init) if name.endswith('_') and not name.startswith('_')]
    with contextlib.ExitStack() as stack:
        stack.enter_context(place)
        stack.enter_context(
            mock.patch.multiple(init, **dict.fromkeys(drawing, lambda tensor, *_, **__: tensor))
        )
        for part in (ModulatedDeformConv2d, MultiScaleDeformableAttention):  # they compute values when built
            stack.enter_context(mock.patch.object(part, 'init_weights', lambda self: None))
        stack.enter_context(mock.patch.object(DeformableAttention, '_initialise', lambda self: None))
        return list(find_family(cfg).build(cfg).state_dict())


def sparse_alone(cfg):
    """Return the family of a sparse backbone that is not part of a detector that can be exported, or None."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.base import BACKBONE, find_family

    family = find_family(cfg) if cfg.get('model') else None
    return family if family is not None and family.product == BACKBONE else None


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_builds(name):
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.cli import backend_config
    from mmdeploy_ext.core.config import config_sha256, load_config
    from mmdeploy_ext.engines import BACKENDS
    from mmdeploy_ext.families.base import FAMILIES, find_family

    cfg, fragment = load_config(str(REPOSITORY / name)), '_base_' in Path(name).parts
    sparse = None if fragment else sparse_alone(cfg)
    if sparse is not None:
        assert sparse.settings(cfg, sparse.build(cfg)).in_channels == sparse.preprocess_rule(cfg).in_channels
        return
    model = cfg.get('model', {})
    of_frames = 'pts_bbox_head' in model or 'instance_bank' in model.get('head', {})
    streams = 'contract' in cfg.get('backend_config', {}) or (not fragment and of_frames)
    if cfg.get('backend_config'):
        names = ('streampetr',) if streams else ('rtdetr', 'solo')  # their options are all that images have
        families = [FAMILIES[name] for name in names] if fragment else [find_family(cfg)]
        keys = {key for family in families for key in backend_config.graph_keys(family)}
        assert cfg.backend_config.keys() <= {'type', *keys, *BACKENDS[cfg.backend_config.type].keys}
        if not fragment:
            (family,) = families
            backend_config.graph_options(cfg, backend_config.read_settings(cfg, family), family)
    of_parts = fragment and (of_frames or 'type' not in model)  # that of frames needs a pipeline, too
    if cfg.get('model') and not of_parts:
        parts = dict(model=cfg.model.to_dict())
        if streams:
            parts['data'] = dict(test=cfg.data.test.to_dict())
        assert len(build(repr(parts))) > 50
    if not fragment:
        rule = find_family(cfg).preprocess_rule(cfg)
        normalises = any(one in repr(cfg.data.test.pipeline) for one in ("'Normalize", "'ImageNormalize"))
        if not hasattr(rule, 'voxel_size'):
            rule = getattr(rule, 'views', rule)
        if rule is None:
            assert not normalises  # no cameras
        elif hasattr(rule, 'mean'):
            assert ((*rule.mean, *rule.std) != (0, 0, 0, 1, 1, 1)) == normalises
        assert len(config_sha256(cfg)) == 64


# ---- direction of dependencies


def imported(name: str) -> set[str]:
    """Return the top-level names that a file imports, also by a string."""
    found = set()
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found.update(alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add('.' if node.level else node.module.split('.')[0])
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'import_module':
            found.update(
                str(argument.value).split('.')[0]
                for argument in node.args
                if isinstance(argument, ast.Constant)
            )
    return found


def test_dependencies_point_from_tools_to_projects_to_mmdeploy_ext():
    wrong = []
    for name in tracked('.py'):
        if above := ABOVE.get(name.split('/')[0]):
            wrong += [f'{name} imports {found}' for found in imported(name) & above]
    assert not wrong


def test_the_plugin_packages_import_and_do_nothing_else():
    for name in tracked('__init__.py'):
        if name.startswith('projects/') and 'plugin' in name:
            kinds = {type(node).__name__ for node in syntax(name).body}
            assert kinds <= {'Expr', 'Import', 'ImportFrom', 'Assign'}, name


def modules(parts) -> list[str]:
    """Return every module of the parts; a package stands for all that is in it."""
    found = []
    for part in parts:
        path = 'mmdeploy_ext/' + part.replace('.', '/')
        patterns = f'{path}.py', f'{path}/*'
        found += [name for name in tracked('.py') if any(fnmatch.fnmatch(name, one) for one in patterns)]
    assert len(found) >= len(parts)
    found = [name for name in found if not name.endswith(TRACED)]
    return [name.removesuffix('.py').replace('/', '.').removesuffix('.__init__') for name in found]


def test_what_is_called_torch_free_imports_where_torch_is_missing():
    done = python(IMPORT_ALL, ','.join(STACK), *modules(TORCH_FREE))
    assert done.returncode == 0, done.stderr


def test_the_runners_import_where_only_their_three_packages_are():
    blocked = ','.join([*STACK, 'rich', 'onnx', 'jinja2', 'onnxslim', 'onnx_ir', 'openvino', 'pycocotools'])
    code = IMPORT_ALL + "sys.path.insert(0, 'tools/onnx')\nimport onnx_no_topk_nms, onnx_with_postprocess\n"
    done = python(code, blocked, *modules(RUNNER_PARTS))
    assert done.returncode == 0, done.stderr


def test_what_runs_as_a_module_imports_openmmlab_after_the_patches():
    begins = "if __name__ == '__main__':"
    names = [name for name in tracked('.py') if begins in (REPOSITORY / name).read_text(encoding='utf-8')]
    names = [name for name in names if name.startswith(('mmdeploy_ext/', 'projects/'))]
    names = [name for name in names if not name.startswith(DISTRIBUTIONS)]
    modules = [name.removesuffix('.py').replace('/', '.') for name in names]
    done = python(IMPORT_ALL, 'mmcv,mmdet,mmdet3d,torchvision', *modules)
    assert names and done.returncode == 0, done.stderr


def names_in(name: str) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
    names = set()
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_what_a_distribution_takes_of_mmdeploy_ext_is_there():
    files, missing = set(tracked('.py')), []
    for name in (name for name in files if name.startswith(DISTRIBUTIONS)):
        for node in nodes(name):
            if not isinstance(node, ast.ImportFrom) or not f'{node.module}.'.startswith('mmdeploy_ext.'):
                continue
            path = node.module.replace('.', '/')
            sources = files & {f'{path}.py', f'{path}/__init__.py'}
            there = set().union(
                *map(names_in, sources),
                *(
                    {alias.name}
                    for alias in node.names
                    if files & {f'{path}/{alias.name}.py', f'{path}/{alias.name}/__init__.py'}
                ),
            )
            absent = {alias.name for alias in node.names} - there
            missing += [f'{name}: {node.module}.{one}' for one in absent]
    assert not missing


def test_mmdeploy_ext_does_not_know_the_distribution_of_rotated_boxes():
    assert not [
        name
        for name in tracked()
        if name.startswith('mmdeploy_ext/') and b'mmrotate' in (REPOSITORY / name).read_bytes()
    ]


TOOLS = [path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / 'tools').rglob('*.py'))]


@pytest.fixture(scope='module')
def help_texts() -> dict[str, tuple[object, str, str]]:
    """Return status, output and errors of `--help` of each script; one process runs them one after the other.

    A blocked package is imported by no script: an import that failed is tried again by the next one.
    """
    done = python(HELPS, ','.join(STACK), *TOOLS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('name', TOOLS)
def test_help_needs_no_torch(help_texts, name):
    status, output, errors = help_texts[name]
    assert status in (None, 0) and not errors
    assert output.startswith('usage: ') and len(output.splitlines()) > 5


# ---- families

NAMED = re.compile(
    r'(?<![a-z])(?:atss|solo|solov2|rt-?detr|stream_?petr|petr_?3d|centerpoint|bevfusion|tood|dy ?head|fcos|'
    r'retina|repvgg|swin)(?![a-z0-9])',
    re.IGNORECASE,
)
OF_FAMILIES = (
    *('families/__init__', 'families/catalogue', 'families/mmdet', 'models/', 'consumers/'),
    *('seeded/', 'runtime/'),
    *('weights/', 'compat/patches', 'exporting/postprocess/'),  # names of others, of upstream modules
    'core/commands',
    'cli/command',
    'cli/convert_',  # names of converters and of scripts
    'cli/lidar_demo_app',
    'cli/ranges',
    'cli/scn_ptq_app',
)  # tools of one family


def words(code: list[ast.AST]) -> set[str]:
    """Return names and texts of code, without what documents it: texts that stand alone."""
    alone = {id(node.value) for node in code if isinstance(node, ast.Expr)}
    found = set()
    for node in code:
        texts = [getattr(node, key, None) for key in ('id', 'attr', 'name', 'module', 'arg')]
        if isinstance(node, ast.Constant) and id(node) not in alone:
            texts.append(node.value)
        found.update(text for text in texts if isinstance(text, str))
    return found


@functools.cache
def names_a_family(word: str) -> bool:
    split = re.sub('(?<=[A-Za-z0-9])(?=[A-Z][a-z])|_', ' ', word)
    return bool(NAMED.search(f'{split} {word}'))


def families_in(code: list[ast.AST]) -> list[str]:
    return [word for word in words(code) if names_a_family(word)]


def test_shared_code_names_no_family():
    shared = [name for name in tracked('.py') if name.startswith('mmdeploy_ext/')]
    shared = [name for name in shared if not name.removeprefix('mmdeploy_ext/').startswith(OF_FAMILIES)]
    shared = [name for name in shared if not fnmatch.fnmatch(name, 'mmdeploy_ext/families/*/*')]
    found = {name: families_in(nodes(name)) for name in shared}
    assert len(shared) > 200 and not {name: those for name, those in found.items() if those}


@pytest.mark.parametrize(
    'code',
    [
        "CALLERS = ('TOODHead',)",
        'from mmdet.models import DyHeadBlock',
        "help = 'SOLO, raw form: cells'",
        'POSTPROCESS = dict(rtdetr=1)',
        'def facts_of_atss(): pass',
        'import mmdet.solov2_head',
    ],
)
def test_every_way_to_name_a_family_is_seen(code):
    found, alone = (list(ast.walk(ast.parse(text))) for text in (code, "def f():\n    '''SOLO'''"))
    assert families_in(found) and not families_in(alone)


# ---- one place for everything


@functools.cache
def exporter_calls(name: str) -> list[ast.Call]:
    """Return the calls of `torch.onnx.export`, by whatever name the file knows it."""
    if not re.search(r'torch\.onnx|from torch', (REPOSITORY / name).read_text(encoding='utf-8')):
        return []
    aliases = {'torch.onnx.export', 'torch.onnx.utils.export', 'torch.onnx.dynamo_export'}
    for node in nodes(name):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('torch'):
            aliases |= {
                (alias.asname or alias.name) + rest
                for alias in node.names
                for rest in ('', '.export')
                if f'{node.module}.{alias.name}{rest}' in aliases
            }
    last = {alias.rpartition('.')[2] for alias in aliases}
    calls = [node for node in nodes(name) if isinstance(node, ast.Call)]
    named = [call for call in calls if {getattr(call.func, key, None) for key in ('id', 'attr')} & last]
    return [call for call in named if ast.unparse(call.func) in aliases]


def test_only_export_py_calls_the_exporter_of_torch():
    callers = [name for name in tracked('.py') if name.startswith(PARTS) and exporter_calls(name)]
    assert callers == ['mmdeploy_ext/exporting/export.py']


def test_every_call_of_the_exporter_says_which_one():
    calls = [(name, call) for name in tracked('.py') for call in exporter_calls(name)]
    assert calls
    for name, call in calls:
        assert 'dynamo' in {keyword.arg for keyword in call.keywords}, f'{name}:{call.lineno}'


# ---- files


def test_no_file_names_a_machine():
    found = []
    for name in tracked():
        content = (REPOSITORY / name).read_bytes()
        for match in (match for pattern in PRIVATE for match in pattern.finditer(content)):
            found.append(f'{name}: {match.group().decode()}')
    assert not found


def test_the_scan_for_machines_finds_one():
    found = ('/work/main', '/root/x', '/tmp/try', 'file:///x', '10.1.2.3', 'http://a.lan/x')
    found += '172.31.0.1', '192.168.0.1', 'https://b.internal/x', '/home/me/x'
    for text in found:
        assert any(pattern.search(f'({text}'.encode()) for pattern in PRIVATE), text
    others = 'work_dirs/x', '127.0.0.1', '1.10.0', 'https://pypi.org/x', '../shared/data', 'a10.1.2.3'
    for text in others:
        assert not any(pattern.search(text.encode()) for pattern in PRIVATE), text


def test_no_tracked_file_is_large():
    assert not [name for name in tracked() if (REPOSITORY / name).stat().st_size > LARGEST_FILE]


def test_the_licence_is_apache_2():
    text = (REPOSITORY / 'LICENSE').read_text()
    assert 'Apache License' in text and 'Version 2.0' in text


def test_ruff_finds_nothing():
    command = [sys.executable, '-m', 'ruff', 'check', '--force-exclude', '--no-cache', *tracked('.py')]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_two_files_of_tests_have_one_name():
    names = [Path(name).name for name in tracked('.py') if name.startswith('tests/')]
    assert not {name for name in names if names.count(name) > 1 and name.startswith('test_')}
