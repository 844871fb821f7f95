"""A pytest plugin: tests about files share one export of equal graphs, see `export_cache`."""

from collections.abc import Iterator

import pytest

FOLDERS = (
    'tests/tools',
    'tests/demo',
    *(f'tests/mmdeploy_ext/{name}' for name in ('benchmark', 'contract', 'proving', 'quantize', 'runtime')),
)
"""Their tests are about files,"""
ABOUT_EXPORTS = (
    'tests/mmdeploy_ext/proving/test_ladder.py',
    'tests/mmdeploy_ext/proving/test_nothing_found.py',
    'tests/mmdeploy_ext/proving/test_head_limits.py',
    'tests/mmdeploy_ext/proving/test_faults.py',
    'tests/mmdeploy_ext/proving/test_changed_lines.py',
)
"""but for these, which are about the export itself, export twice to have the same, or plant a fault in it."""


@pytest.fixture(scope='module', autouse=True)
def _exported_once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    file = request.node.nodeid
    if file.startswith(FOLDERS) and file not in ABOUT_EXPORTS:
        from export_cache import exported_once, shared_folder  # imports torch

        with exported_once(shared_folder(tmp_path_factory)):
            yield
    else:
        yield
