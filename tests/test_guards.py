"""Rules of the house that hold for the whole tree; each test says which."""

import ast
import contextlib
import fnmatch
import functools
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from unittest import mock

import pytest

from marking import needs_driving

REPOSITORY = Path(__file__).resolve().parents[1]
RUNNER_PARTS = (
    'base',
    'spec',
    'engines.onnxruntime',
    'runtime',
    'families.*.options*',
    'families.*.facts',
    'families.*.runtime',
)
TORCH_FREE = (
    *RUNNER_PARTS,
    'graphs',
    'engines.base',
    'engines.registry',
    'cli.options',
    'proving.provenance',
    'graphs.diff.files',
    'proving.views.difference',
    'proving.views.report',
)
TRACED = ('/export.py', '_export.py')
"""Ends of the names of modules of other programs that make graphs, in the parts without torch."""
ABOVE = dict(mmdeploy_ext={'projects', 'tools', 'tests', 'dev'}, projects={'tools', 'tests'}, tools={'tests'})
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


@functools.lru_cache
def tracked(suffix: str = '') -> list[str]:
    """Return the files that git tracks and that are there."""
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('not a git checkout')
    names = [name for name in done.stdout.split('\0') if name.endswith(suffix)]
    return [name for name in names if (REPOSITORY / name).is_file()]


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding='utf-8')


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, in the repository."""
    command = [sys.executable, '-c', code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


# ---- configs

CONFIGS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ('configs', 'projects/configs')
    for path in (REPOSITORY / folder).rglob('*.py')
    if '_base_' not in path.parts and re.search(r'^_base_ =|^model =', path.read_text(), re.M)
)


DRIVING = tuple(
    f'projects/configs/{name}'
    for name in ('BEVDet', 'BEVFormer', 'BEVFusion/bevfusion_toy', 'BEVFusion/bevfusion_camera',
                 'BEVFusion/bevfusion_lidar_transfusion', 'FlashOcc', 'PETR', 'Sparse4D', 'SparseDrive',
                 'StreamPETR', 'VAD')
)  # fmt: skip
"""Beginnings of configs of driving systems."""


def texts_once(names):
    """Return configs as parameters; of X_onnx.py of a folder with one text but for X, one is in the suite."""
    seen, cases = set(), []
    for name in names:
        path = REPOSITORY / name
        model = re.sub('_(onnx|pth)$', '', path.stem)
        text = path.read_text().replace(model, 'X')
        is_known = (path.parent, text) in seen and path.with_name(f'{model}.py').is_file()
        seen.add((path.parent, text))
        marks = [pytest.mark.matrix] if is_known else []
        marks += [needs_driving] if name.startswith(DRIVING) else []
        cases.append(pytest.param(name, marks=marks))
    return cases


@functools.cache
def parameters(model: str) -> int:
    """Build a model, given as the text of a dict, and draw no weights; return the number of parameters."""
    from mmcv import Config
    from mmcv.ops import ModulatedDeformConv2d, MultiScaleDeformableAttention
    from torch.nn import init

    from mmdeploy_ext.families.base import find_family

    cfg = Config(ast.literal_eval(model))
    drawing = [name for name in vars(init) if name.endswith('_') and not name.startswith('_')]
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.multiple(init, **dict.fromkeys(drawing, lambda tensor, *_, **__: tensor))
        )
        for part in (ModulatedDeformConv2d, MultiScaleDeformableAttention):  # they draw weights themselves
            stack.enter_context(mock.patch.object(part, 'init_weights', lambda self: None))
        return len(find_family(cfg).build(cfg).state_dict())


@pytest.mark.parametrize('name', texts_once(CONFIGS))
def test_every_config_builds(name):
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.base.config import load_config
    from mmdeploy_ext.bench.kinds import kind_of
    from mmdeploy_ext.families.base import BACKBONE, find_family
    from mmdeploy_ext.families.evaluate import backend_config

    cfg = load_config(str(REPOSITORY / name))
    family = find_family(cfg)
    rule = family.preprocess_rule(cfg)
    if family.product == BACKBONE:
        assert family.settings(cfg, family.build(cfg)).in_channels == rule.in_channels
        return
    if cfg.get('backend_config'):  # X_onnx.py and X_pth.py have the model of X.py
        settings = backend_config.read_settings(cfg, family, kind_of(family).unit)
        backend_config.graph_options(cfg, settings, family)
        return
    model, test = cfg.model.to_dict(), cfg.data.test.to_dict()
    assert parameters(repr(dict(model=model, data=dict(test=test)))) > 50


# ---- direction of dependencies


def test_dependencies_point_from_tools_to_projects_to_mmdeploy_ext():
    wrong = []
    for name in tracked('.py'):
        for above in ABOVE.get(name.split('/')[0], ()):
            if re.search(rf'^\s*(from|import) {above}\b|import_module\(.{above}\.', text_of(name), re.M):
                wrong.append(f'{name} imports {above}')
    assert not wrong


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


TOOLS = [
    path.relative_to(REPOSITORY).as_posix()
    for path in sorted((REPOSITORY / 'tools').rglob('*.py'))
    if '__main__' in path.read_text(encoding='utf-8')
]


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


# ---- one place for everything


# ---- files


def test_no_file_names_a_machine():
    found = []
    for name in tracked():
        content = (REPOSITORY / name).read_bytes()
        for match in (match for pattern in PRIVATE for match in pattern.finditer(content)):
            found.append(f'{name}: {match.group().decode()}')
    assert not found


PATH = re.compile(r'(?<![\w./{}<~*-])(?:\.{1,2}/)*((?:[\w.-]+/)+[\w.-]+\.(?:py|m?js))\b(?![\w/*]|\.\w)')
SOURCE = re.compile(r'\bSources?\b[^:\n]*:.*?(?:\n\s*\n|\Z)', re.DOTALL)
"""A paragraph on files of another repository."""
ELSEWHERE = (
    '_base_/', 'ask/', 'config/utils.py', 'core/', 'faster_rcnn/', 'mmcv/', 'mmdet/', 'models/fasternet.py',
    'plugin/', 'projects/configs/flashocc/', 'projects/configs/panoptic-flashocc/', 'tools/train.py',
    'work_dirs/',
)  # fmt: skip
"""Paths in libraries and in repositories of users."""
OF_OTHERS = 'CHANGELOG.md', 'docs/forks.md', 'docs/zoo-configs.md', 'docs/zh-CN/forks.md'
"""Pages about files of other repositories, or of older versions."""


def prose_of(name: str) -> list[str]:
    """Docstrings and comments of a source, or a page."""
    text = text_of(name)
    if name.endswith('.md'):
        return [text]
    if not name.endswith('.py'):
        return re.findall(r'/\*.*?\*/|//.*', text, re.DOTALL)
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    nodes = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    docs = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [*docs, ' '.join(comments)]


def test_every_path_in_docstrings_and_pages_is_there():
    ends = {name.split('/', count)[-1] for name in tracked() for count in range(name.count('/') + 1)}
    wrong = [
        f'{name}: {path}'
        for suffix in ('.py', '.js', '.mjs', '.md')
        for name in tracked(suffix)
        if name not in OF_OTHERS
        for text in prose_of(name)
        for path in PATH.findall(text if suffix == '.md' else SOURCE.sub('', text))
        if path not in ends and not path.startswith(ELSEWHERE)
    ]
    assert not wrong, '\n'.join(wrong)
