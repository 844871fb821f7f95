"""A pytest plugin: in tests of files an input of a proof runs once, and its second run gives the same.

A proof runs each input twice, for engines that give something else now and then. A test that asks for
`runs_twice` has that: those of right files, of every family, and of such an engine.
"""

import sys

import pytest

FOLDERS = (
    'tests/tools',
    'tests/projects/mmdet_plugin',
    *(f'tests/mmdeploy_ext/{name}' for name in ('contract', 'proving', 'quantize')),
)
"""Where the faults of files are in both runs."""
MODULE = 'mmdeploy_ext.proving.levels.run_twice'


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
