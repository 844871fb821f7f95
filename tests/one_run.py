"""A pytest plugin: in tests of files the times of a proof are those of its own runs, without further ones."""

import sys

import pytest

FOLDERS = (
    'tests/tools',
    'tests/projects',
    *(f'tests/mmdeploy_ext/{name}' for name in ('contract', 'proving', 'quantize')),
)
CASES = 'mmdeploy_ext.proving.levels.cases'


@pytest.fixture(autouse=True)
def _timed_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.nodeid.startswith(FOLDERS) and CASES in sys.modules:
        monkeypatch.setattr(sys.modules[CASES], 'TIMED_RUNS', 1)
