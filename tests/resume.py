"""A pytest plugin: with `--resume`, tests that passed with this code and these versions are not run again.

What passed is kept in pytest's cache: an interrupted run goes on where it was.
"""

import functools
import hashlib
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ('mmdeploy_ext', 'projects', 'configs', 'tools', 'docs/_pages', 'requirements*', 'pyproject.toml')


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--resume', action='store_true', help='leave out tests that passed with the same code')


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('resume'):
        config.pluginmanager.register(Passed(config))


@functools.cache
def digest(*patterns: str) -> str:
    """Return a hash of the files that git knows, and of new ones."""
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', '--', *patterns]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split(
        '\0'
    )
    found = hashlib.sha256()
    for path in (REPOSITORY / name for name in sorted(set(names)) if name):
        if path.is_file():
            found.update(f'{path}\0'.encode() + path.read_bytes())
    return found.hexdigest()


class Passed:
    """The names of tests that passed, one file of them per state of the code and of the test's file."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.folder = config, config.cache.mkdir('passed')

    def file(self, nodeid: str) -> Path:
        return self.folder / digest(*CODE, ':(glob)tests/*.py', nodeid.partition('::')[0])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {path.name: set(path.read_text().splitlines()) for path in self.folder.iterdir()}
        done = [item for item in items if item.nodeid in known.get(self.file(item.nodeid).name, ())]
        self.config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in set(done)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == 'call' and report.passed and not hasattr(self.config, 'workerinput'):
            with self.file(report.nodeid).open('a') as stream:
                stream.write(f'{report.nodeid}\n')

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # all of them passed before
            session.exitstatus = pytest.ExitCode.OK
