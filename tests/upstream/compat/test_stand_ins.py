"""Stand-ins: modules of users that import what is not there, and what libraries see of that."""

import importlib
import importlib.util
import re
import sys

import pytest

from mmdeploy_ext.base.errors import AbsentPackageError
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat import replaced, stand_ins

REGISTRY = 'from mmcv.utils import Registry\nNETS = Registry("nets")\n'
FILES = dict(
    registry=REGISTRY + '@NETS.register_module()\nclass FailNet: pass\n',
    failing='from .registry import NETS\n@NETS.register_module(force=True)\nclass FailNet: pass\n'
    'class Thing: pass\nraise OSError("CUDA_HOME environment variable is not set")\n',
    inner='import absent_inner\ndef thing(): return absent_inner.f()\n',
    names='x = 1\n',
    half='try: from absent import Base\nexcept ImportError: pass\nclass Net(Base): pass\n',
)
"""Modules beside the one that is tried."""
TRAPS = {
    'autograd': (
        'import torch, absent\nclass F(torch.autograd.Function):\n'
        '    @staticmethod\n    def forward(ctx, x): return absent.forward(x)\n'
        'use = lambda: F.apply(torch.zeros(1))',
        AbsentPackageError,
    ),
    'base classes': (
        'from torch import nn\nfrom .registry import NETS\nfrom absent import Base, Mixin\n'
        '@NETS.register_module()\nclass A(Base):\n    pass\n'
        '@NETS.register_module()\nclass B(nn.Module, Mixin):\n    pass\n'
        '@NETS.register_module()\nclass C(A):\n    def __init__(self): super().__init__()\n'
        'use = lambda: [raised(NETS.build, dict(type=name)) for name in "ABC"]',
        ['AbsentPackageError'] * 3,
    ),
    'base with keywords': (
        'from absent import Base\nclass A(Base, table=True, metaclass=type): pass\nclass M(type): pass\n'
        'class B(Base, metaclass=M): pass\nuse = lambda: isinstance(3, A)',
        False,
    ),
    'constants': (
        'import absent as x\nA = x.SIZE * 2 + 1\nB = [v for v in x.NAMES]\nC = {x.KEY: 1}\nD = x.table[3]\n'
        'x.rcParams["font"] = 3\nif x.FLAG: raise RuntimeError\nuse = lambda: (B, len(C))',
        ([], 1),
    ),
    'a number': ('import absent\nE = int(absent.SIZE)', ImportError),
    'compiled at import': (
        'from torch.utils.cpp_extension import load\next = load("own_ext", sources=["a.cpp", "a.cu"])\n'
        'use = lambda: ext.forward(3)',
        AbsentPackageError,
    ),
    'a name of a fallback': (
        'from . import half\nuse = lambda: raised(half.Net)',
        'AbsentPackageError',
    ),
    'asks for CUDA': ('import torch\nassert torch.cuda.is_available(), "needs cuda"', AssertionError),
    'decorators': (
        'import absent\n@absent.jit\ndef f(x): return x\n@absent.jit(cache=True)\ndef g(x): return x\n'
        'class D:\n    @absent.prop\n    def p(self): return 3\n@absent.dataclass\nclass E: x: int = 3\n'
        'def use(): return [raised(f, 1), raised(g, 1), raised(lambda: D().p), raised(E)]',
        ['AbsentPackageError'] * 4,
    ),
    'a call with a class': (
        'import absent\nclass E: x = 3\nabsent.registry.register(E)\nuse = lambda: E().x',
        3,
    ),
    'dotted': (
        'import absent.b.c as d\nimport absent.e.f\nfrom absent.g import h as hh\n'
        'use = lambda: f"{d} {absent.e.f.k} {hh}"',
        '<stand-in for absent.b.c> <stand-in for absent.e.f.k> <stand-in for absent.g.h>',
    ),
    'exceptions': (
        'import absent\ndef use():\n    try: raise ValueError\n    except absent.MyError: return "caught"\n'
        '    except ValueError: return "value"',
        'value',
    ),
    'find_spec and import_module': (
        'import importlib, importlib.util\nHAS = importlib.util.find_spec("absent") is not None\n'
        'try:\n    importlib.import_module("absent")\n    DYN = True\nexcept ImportError: DYN = False\n'
        'use = lambda: (HAS, DYN)',
        (False, False),
    ),
    'a call of __import__': ('__import__("absent")', ImportError),
    'hasattr': (
        'import absent\nEXT = getattr(absent, "fast", None)\n'
        'def use(): return "fallback" if EXT is None else EXT(3)',
        AbsentPackageError,
    ),
    'isinstance': (
        'from absent import Box\n'
        'use = lambda: (isinstance(3, (int, Box)), isinstance(3, Box), issubclass(int, Box))',
        (True, False, False),
    ),
    'compared later': ('import absent\nuse = lambda: absent.MODE == 3', AbsentPackageError),
    'names of libraries': (
        'from torch.onnx import no_such_registry\nfrom mmcv.ops import nms, not_there\n'
        'from mmdet.core import no_such as ns\nuse = lambda: (callable(nms), raised(ns, 3))',
        (True, 'AbsentPackageError'),
    ),
    'defaults': (
        'import functools\nfrom absent import build, norm\nlayer = functools.partial(build, a=1)\n'
        'class A:\n    def __init__(self, norm=norm): self.n = norm\n'
        'use = lambda: (repr(A().n), raised(layer))',
        ('<stand-in for absent.norm>', 'AbsentPackageError'),
    ),
    'copies': (
        'import pickle, copy, torch\nfrom absent import fn\nclass M(torch.nn.Module):\n'
        '    def __init__(self): super().__init__(); self.act = fn\n'
        'use = lambda: repr([copy.deepcopy(M()).act, pickle.loads(pickle.dumps(fn))])',
        '[<stand-in for absent.fn>, <stand-in for absent.fn>]',
    ),
    'a module that fails': (
        'from .failing import Thing\nfrom .registry import NETS\n'
        'use = lambda: (NETS.get("FailNet"), repr(Thing))',
        (None, '<stand-in for {package}.failing.Thing>'),
    ),
    'a member that fails': (
        'from . import names, failing\nuse = lambda: (names.x, raised(lambda: failing.Thing()))',
        (1, 'AbsentPackageError'),
    ),
    'scripted': (
        'import torch\nfrom absent import helper\n@torch.jit.script\ndef f(x: torch.Tensor): return x + 1\n'
        'use = lambda: f(torch.zeros(1)).item()',
        1.0,
    ),
    'star': ('from absent import *\ndef use(): return Instances(3)', AbsentPackageError),
    'star keeps others': (
        'from .names import *\nfrom absent import *\nclass A(Instances): pass\nuse = lambda: x',
        1,
    ),
    'a name in try': (
        'try:\n    from torch.onnx import no_such_registry as OLD\nexcept ImportError: OLD = False\n'
        'use = lambda: OLD',
        False,
    ),
    'try': (
        'try:\n    import absent\n    HAS = True\nexcept ImportError: HAS = False\nuse = lambda: HAS',
        False,
    ),
    'suppress': (
        'import contextlib\nHAS = False\nwith contextlib.suppress(ImportError):\n    import absent as HAS\n'
        'use = lambda: HAS',
        False,
    ),
    'try around a module': (
        'try:\n    from .inner import thing\nexcept ImportError: thing = None\nuse = lambda: thing',
        None,
    ),
    'try in a function': (
        'def probe():\n    try: from .inner import thing\n    except ImportError: thing = None\n'
        '    return thing\nHAS = probe()\nuse = lambda: HAS',
        None,
    ),
    'try for other errors': (
        'try: import absent\nexcept KeyError: absent = None\nuse = lambda: absent.f()',
        AbsentPackageError,
    ),
    'typing': (
        'from typing import *\nfrom dataclasses import dataclass, field\nfrom absent import Box, Cfg\n'
        'T = TypeVar("T", bound=Box)\n'
        'def f(a: Optional[Box], b: List[Box], c: Union[Box, int], d: Box | None, e: Callable[[Box], Cfg]):\n'
        '    return 1\n'
        '@dataclass\nclass A:\n    x: Box = None\n    y: Box = Box(3)\n'
        '    z: list = field(default_factory=Box.make)\nuse = lambda: f(1, 2, 3, 4, 5)',
        1,
    ),
    'a typing error of the user': ('from .names import nothing', ImportError),
    'versions': (
        'import absent\nfrom mmcv.utils import digit_version\n'
        'NEW = digit_version(absent.__version__) >= digit_version("1.2")\n'
        'if absent.__version__ >= "2": from absent.new import f\nelse: from absent.old import f\n'
        'use = lambda: (NEW, repr(f))',
        (True, '<stand-in for absent.new.f>'),
    ),
    'a highest version': (
        'import absent\nabsent_maximum_version = "1.5"\nassert absent.__version__ <= absent_maximum_version',
        None,
    ),
}
"""Name -> a module, and what its `use()` returns or raises, or what the import raises."""
RAISED = """
def raised(function, *args):
    try: return function(*args)
    except Exception as error: return type(error).__name__
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a package of the user's, imports one of its modules, and returns both."""
    compat.apply()
    stand_ins.forget()
    monkeypatch.syspath_prepend(tmp_path)
    packages = []

    def make(code: str, files=FILES, name='tried'):
        package = f'users_{tmp_path.name}'.replace('-', '_')
        packages.append(package)
        folder = tmp_path / package
        folder.mkdir()
        (folder / '__init__.py').write_text('')
        for file, text in {**files, name: f'{code}\n{RAISED}'}.items():
            (folder / f'{file}.py').write_text(text)
        importlib.invalidate_caches()
        return package, lambda: importlib.import_module(f'{package}.{name}')

    yield make
    stand_ins.forget()
    for name in list(sys.modules):
        if name.partition('.')[0] in packages:
            del sys.modules[name]


@pytest.mark.parametrize('trap', TRAPS)
def test_a_module_that_imports_what_is_not_there(trap, write):
    code, expected = TRAPS[trap]
    package, load = write(code)
    if isinstance(expected, type) and 'use' not in code:
        with pytest.raises(expected):
            load()
        assert not stand_ins.lacks or 'int(' in code
        return
    use = getattr(load(), 'use', lambda: None)
    if expected is AbsentPackageError:
        with pytest.raises(AbsentPackageError, match=rf'^\S+{package}/tried\.py:\d+ .*: .+$'):
            use()
    else:
        inserted = re.sub(r'\{package\}', package, repr(expected))
        assert repr(use()) == inserted
    assert not {'absent', 'absent_inner', 'torch.onnx.no_such_registry'} & sys.modules.keys()
    assert importlib.util.find_spec('absent') is None


def test_the_first_lines_name_what_is_not_called_what_is_and_the_fallbacks_taken(write):
    fallback = 'try:\n    import fast_nms\nexcept ImportError: pass\n'
    code = f'import wandb, av2.maps\n{fallback}use = lambda: av2.maps.f()'
    package, load = write(code)
    module = load()
    before = replaced.facts()
    assert before['stand_ins'] == dict(wandb='', av2='')
    assert list(before['fallbacks']) == ['fast_nms']
    assert replaced.lines(before)[0] == 'stand-ins: wandb, av2 (not called)'
    with pytest.raises(AbsentPackageError):
        module.use()
    called = replaced.facts()['stand_ins']
    assert called['wandb'] == '' and called['av2'].endswith(f'{package}/tried.py:5')


@pytest.mark.parametrize(
    ('name', 'advice'),
    [
        ('wandb', 'pip install wandb'),
        ('pytorch_lightning', 'pip install pytorch-lightning'),
        ('sparse_conv', ''),
    ],
)
def test_pip_is_advised_only_for_what_pypi_is_known_to_have(name, advice, write):
    _, load = write(f'import {name}\nuse = lambda: {name}.f()')
    with pytest.raises(AbsentPackageError) as error:
        load().use()
    assert str(error.value).endswith(advice) and ('pip install' in str(error.value)) == bool(advice)


def test_a_package_of_the_same_name_that_the_repository_builds_is_its_folder(write, tmp_path):
    package, load = write('import own_kernels\nuse = lambda: own_kernels.f()')
    (tmp_path / package / 'setup.py').write_text("setup(name='own_kernels')\n")
    with pytest.raises(AbsentPackageError, match=rf'pip install \S*{package}$'):
        load().use()


def test_a_class_of_a_module_that_fails_is_not_taken_from_a_library(write):
    files = dict(
        nets='raise OSError\nfrom .pyramid import OwnPyramid\nfrom .registry import NETS\n',
        pyramid='from .registry import NETS\n@NETS.register_module(force=True)\nclass OwnPyramid: pass\n',
        registry=REGISTRY
        + '@NETS.register_module()\nclass OwnPyramid: pass\n@NETS.register_module()\nclass Net: pass\n',
    )
    code = 'from .registry import NETS\nfrom . import nets\nuse = lambda: list(NETS.module_dict)'
    package, load = write(code, files)
    assert load().use() == ['Net']
    assert 'OSError' in stand_ins.failed[f'{package}.nets']


def test_a_name_that_is_registered_twice_is_no_stand_in(write):
    twice = 2 * '@NETS.register_module()\nclass Own: pass\n'
    _, load = write('from . import twice', dict(twice=REGISTRY + twice))
    with pytest.raises(KeyError, match='Own is already registered'):
        load()


def test_functions_and_libraries_get_the_truth(write):
    module = write('def use():\n    import absent')[1]()
    with pytest.raises(ModuleNotFoundError) as error:
        module.use()
    assert not isinstance(error.value, AbsentPackageError)
    with pytest.raises(ModuleNotFoundError):
        exec(compile('import absent', importlib.__file__, 'exec'), dict(__name__='library'))
    exec(compile('import math', module.__file__, 'exec'), {})  # has no name, and no stand-ins


def test_what_is_set_on_a_module_that_lacks_a_name_is_set_for_all(write, monkeypatch):
    import torch.onnx

    monkeypatch.setattr(torch.onnx, 'own_name', 'before', raising=False)
    code = (
        'import torch.onnx.no_such_registry\ntorch.onnx.own_name = "after"\nuse = lambda: torch.onnx.own_name'
    )
    assert write(code)[1]().use() == 'after' == torch.onnx.own_name


def test_they_are_the_first_line_of_a_check_and_of_a_verdict(write, tmp_path, capsys, monkeypatch):
    from rich.console import Console

    from mmdeploy_ext.cli import export_app
    from mmdeploy_ext.proving.views.table import print_verdict
    from mmdeploy_ext.spec.verdict import Verdict

    package, _ = write('import wandb, av2')
    config = f"custom_imports = dict(imports=['{package}.tried'])\nmodel = dict(type='NoSuchDetector')\n"
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    assert export_app.main(['--check', str(tmp_path / 'config.py')]) == 2
    first = 'stand-ins: wandb, av2 (not called)'
    assert capsys.readouterr().out.splitlines()[0] == first
    print_verdict(Verdict(dict(replaced=replaced.facts())), Console(width=150))
    assert capsys.readouterr().out.splitlines()[0] == first
