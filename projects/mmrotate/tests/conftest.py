"""What all tests of this distribution share. They are run by `make test-rotate`, which has mmrotate."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
REPO = PROJECT.parents[1]
for folder in (REPO / 'tests/support', PROJECT, REPO):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
os.environ.setdefault('OMP_NUM_THREADS', '1')

from mmdeploy_ext.base import cli  # noqa: E402
from mmdeploy_ext.upstream import compat  # noqa: E402

cli.wait_passively()
compat.apply()
ABSENT = 'mmrotate is not installed: `make env-rotate`, then `make test-rotate`'


def pytest_collection_modifyitems(items):
    """Skip everything without mmrotate."""
    if importlib.util.find_spec('mmrotate') is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=ABSENT))
