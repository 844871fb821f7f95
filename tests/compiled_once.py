"""A pytest plugin: in a fresh checkout each worker compiles a share of the files, instead of all of them.

Of the CPU seconds that three workers took to collect the tests there, rewriting of assertions was a third.
"""

import compileall
import contextlib
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PRODUCT = TESTS.parent / 'mmdeploy_ext'


def rewrite(path: Path, hook: importlib.abc.Loader) -> None:
    """Let pytest rewrite a file of tests and keep what it compiled; the file does not run.

    The first statement of a rewritten file imports something, for which it has no function here.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=hook)
    module = importlib.util.module_from_spec(spec)
    vars(module)['__builtins__'] = {}
    with contextlib.suppress(ImportError):
        hook.exec_module(module)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config, worker = session.config, getattr(session.config, 'workerinput', None)
    if worker is None or sys.dont_write_bytecode or [Path(arg).resolve() for arg in config.args] != [TESTS]:
        return
    rewritten = {*TESTS.rglob('test_*.py'), *TESTS.rglob('conftest.py')}
    files = sorted({*rewritten, *TESTS.glob('*.py'), *PRODUCT.rglob('*.py')})
    number = int(worker['workerid'].removeprefix('gw'))
    for path in itertools.islice(files, number, None, worker['workercount']):
        if path in rewritten:
            rewrite(path, config.pluginmanager.rewrite_hook)
        else:
            compileall.compile_file(path, quiet=2)


def pytest_collection_finish() -> None:
    """Keep what numba compiles of mmdet3d's suppression: each process would compile it again, in 1.6 s."""
    module = sys.modules.get('mmdet3d.core.post_processing.box3d_nms')
    if module is not None:
        with contextlib.suppress(RuntimeError):  # no folder takes what is kept
            module.circle_nms.enable_caching()
