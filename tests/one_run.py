"""A pytest plugin: in tests of files an input of a proof runs once, and its second run gives the same.

A proof runs each input twice, for engines that give something else now and then, and one of them a few more
times for its times. A test that asks for `runs_twice` has that: those of right files, of every family, and of
such an engine.
"""

import sys

import pytest

FOLDERS = (
    'tests/tools',
    'tests/projects',
    *(f'tests/mmdeploy_ext/{name}' for name in ('contract', 'proving', 'quantize')),
)
"""Where the faults of files are in both runs."""
MODULE = 'mmdeploy_ext.proving.levels.run_twice'
CASES = 'mmdeploy_ext.proving.levels.cases'


@pytest.fixture
def runs_twice() -> None:
    """Let each input of a proof run twice, as for a user."""


@pytest.fixture(autouse=True)
def _runs_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    module, known = sys.modules.get(MODULE), [None, None]
    if module is None or not request.node.nodeid.startswith(FOLDERS) or 'runs_twice' in request.fixturenames:
        return
    attempt = module.attempt

    def once(run):
        if known[0] is not run:
            known[:] = run, attempt(run)
        return known[1]

    monkeypatch.setattr(module, 'attempt', once)
    if CASES in sys.modules:
        monkeypatch.setattr(sys.modules[CASES], 'TIMED_RUNS', 1)
