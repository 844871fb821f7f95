"""A pytest plugin: what other files of tests hold is not looked at as a user's, whenever a model is loaded.

A process of the suite has imported all of them: 19,000 containers, a seventh of a second for each model, and
two more runs of the model in a proof if one of them has changed.
"""

import sys

import pytest

from mmdeploy_ext.core import outer_containers

NO_MODEL_USES = (
    'test_',
    'planted_',
    'planting',
    'mutation',
    'documented',
    'docs._pages.',
    'remembered',
    'opened_once',
)
"""What the names of modules of tests, faults and pages begin with, and of those that keep what was made."""


class OtherTests:
    """Leaves these modules out, but for that of the test that runs."""

    def __init__(self) -> None:
        self.names, self.running = frozenset(), ''
        self.is_users = outer_containers._is_users

    def pytest_collection_finish(self) -> None:
        self.names = frozenset(name for name in sys.modules if name.startswith(NO_MODEL_USES))
        outer_containers._is_users = self.is_looked_at

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running = nodeid.partition('::')[0].rpartition('/')[2].removesuffix('.py')

    def is_looked_at(self, module: object) -> bool:
        is_other = module.__name__ in self.names and module.__name__ != self.running
        return not is_other and self.is_users(module)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(OtherTests())
