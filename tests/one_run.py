"""A pytest plugin: in tests of files the times of a proof are those of its own runs, without further ones."""

import sys

import pytest

FOLDERS = (
    'tests/tools',
    'tests/projects',
    *(f'tests/mmdeploy_ext/{name}' for name in ('contract', 'proving', 'quantize')),
)
PICTURES = 'mmdeploy_ext.proving.pictures'


@pytest.fixture(autouse=True)
def _timed_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.nodeid.startswith(FOLDERS) and PICTURES in sys.modules:
        monkeypatch.setattr(sys.modules[PICTURES], 'TIMED_RUNS', 1)
